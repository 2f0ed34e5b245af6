"""RWKV-6: RWKV-5.2 with a decay and interpolations that depend on the data, each through a low-rank pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from .architecture import Architecture, LayerState, StateField
from .blocks import SHIFT_LERP, Norm, head_norm, silu
from .channel_mix import ChannelMix, output_scale, rescaled
from .linear import Linear
from .rows import Index, Rows
from .rwkv5 import Head5, head_size_complaint, load_bonus, matrix_state_fields
from .schema import FFN_RECEPTANCE, LAYER, LN0, LN_X, TIME_STATE, TOP, Schema
from .weights import Weights


def wkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor, head: Head5, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-6 state of each row through its tokens, and read it out.

    For each head, with the state S of shape [K, V] (row = key channel, column = value channel):

        y_t = r_t (S + diag(u) k_t^T v_t),   S ← diag(exp(-exp(d + w_t))) S + k_t^T v_t

    Args:
        r, k, v: [M, A], A = H * N.
        g: [M, A] gate before its SiLU.
        w: [M, A] what the low-rank pair adds to the decay term d = `head.decay`.
        state: [P, H, K, V] float32. **Updated in place** in the rows' slots.

    Returns:
        group_norm(y) * silu(g): [M, A], dtype of `r`.
    """
    num_heads, size = head.bonus.shape
    r_, k_, v_, w_ = (x.float().view(-1, num_heads, size) for x in (r, k, v, w))
    decay = torch.exp(-torch.exp(head.decay + w_))
    out = torch.zeros_like(r_)

    def advance(tokens: Index, s: Tensor) -> None:
        rt, kt, vt = r_[tokens], k_[tokens], v_[tokens]
        own = (rt * head.bonus * kt).sum(-1, keepdim=True)
        out[tokens] = torch.matmul(rt[:, :, None], s)[:, :, 0] + own * vt
        s.mul_(decay[tokens][..., None]).add_(kt[..., None] * vt[:, :, None])

    rows.scan((state,), advance)
    y = head_norm(out.flatten(1), head.norm, num_heads, head.eps)
    return (y * silu(g.float())).to(r.dtype)


class TimeMix(NamedTuple):
    """The recurrent half of a v6 layer."""

    norm: Norm
    mix_x: Tensor
    """[1, C]: share of the previous token in the input of the low-rank interpolations."""
    mix: Tensor
    """[5, 1, C]: constant part of the previous token's share, for decay, key, value, receptance, gate."""
    mix_in: Linear
    """C → 5 R."""
    mix_out: tuple[Linear, ...]
    """R → C, five times."""
    decay_in: Linear
    decay_out: Linear
    head: Head5
    receptance: Linear
    key: Linear
    value: Linear
    gate: Linear
    output: Linear


class Rwkv6(Architecture):
    """RWKV-6 (Finch)."""

    name = "rwkv6"
    ops = (SHIFT_LERP, OpSpec("wkv6", wkv6))
    schema = Schema(
        top=TOP,
        layer={
            **LAYER,
            **FFN_RECEPTANCE,
            **LN_X,
            **{"att.time_maa_" + c: "C" for c in "xwkvrg"},
            **{"ffn.time_maa_" + c: "C" for c in "kr"},
            "att.time_maa_w1": ("C", "5R"),
            "att.time_maa_w2": (5, "R", "C"),
            "att.time_decay": "A",
            "att.time_decay_w1": ("C", "Rw"),
            "att.time_decay_w2": ("Rw", "A"),
            "att.time_faaaa": ("H", "N"),
            "att.time_first": ("H", "N"),
            "att.gate.weight": ("A", "C"),
        },
        optional=TIME_STATE,
        one_of=(("att.time_first", "att.time_faaaa"),),
        first_only=LN0,
    )

    def __init__(self, weights: Weights, sizes: Mapping[str, int], ln_x_eps: float) -> None:
        super().__init__(weights, sizes, ln_x_eps)
        self.embedding = weights.embedding()
        self.layers = [self._load_layer(weights, i) for i in range(sizes["L"])]

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        if sizes["5R"] != 5 * sizes["R"]:
            return f"att.time_maa_w1 has {sizes['5R']} columns, expected 5 * {sizes['R']}"
        return head_size_complaint(sizes)

    @classmethod
    def state_fields(cls, sizes: Mapping[str, int], dtype: torch.dtype) -> tuple[StateField, ...]:
        return matrix_state_fields(sizes, dtype)

    def _load_layer(self, weights: Weights, i: int) -> tuple[TimeMix, ChannelMix]:
        p = f"blocks.{i}.att."
        scale = output_scale(weights.dtype, i)
        num_heads, size = self.sizes["H"], self.sizes["N"]
        time_mix = TimeMix(
            norm=weights.norm(f"blocks.{i}.ln1"),
            mix_x=weights.vectors(p + "time_maa_x"),
            mix=weights.vectors(*(p + "time_maa_" + c for c in "wkvrg"))[:, None],
            mix_in=weights.low_rank(p + "time_maa_w1"),
            mix_out=weights.low_ranks(p + "time_maa_w2"),
            decay_in=weights.low_rank(p + "time_decay_w1"),
            decay_out=weights.low_rank(p + "time_decay_w2"),
            head=Head5(
                decay=weights.float_vector(p + "time_decay").view(num_heads, size),
                bonus=load_bonus(weights, p).view(num_heads, size),
                norm=weights.norm(p + "ln_x", torch.float32),
                eps=self.ln_x_eps,
            ),
            receptance=weights.linear(p + "receptance.weight"),
            key=weights.linear(p + "key.weight"),
            value=weights.linear(p + "value.weight"),
            gate=weights.linear(p + "gate.weight"),
            output=weights.linear(p + "output.weight", scale),
        )
        mix = weights.vectors(f"blocks.{i}.ffn.time_maa_k", f"blocks.{i}.ffn.time_maa_r")
        return time_mix, ChannelMix.load(weights, i, mix, scale)

    def step(self, token_ids: Tensor, rows: Rows, state: list[LayerState], ops: OpTable) -> Tensor:
        x = self.embedding[token_ids]
        for i, ((time_mix, channel_mix), s) in enumerate(zip(self.layers, state, strict=True)):
            x = x + self._time_mix(x, time_mix, s, rows, ops)
            x = rescaled(x + channel_mix(x, s.ffn_shift, rows, ops), i)
        return x

    @staticmethod
    def _time_mix(x: Tensor, p: TimeMix, s: LayerState, rows: Rows, ops: OpTable) -> Tensor:
        normed, delta, mixed = ops.shift_lerp(x, p.norm, p.mix_x, s.att_shift, rows)
        low = torch.tanh(p.mix_in(mixed[0])).chunk(5, dim=1)
        share = torch.stack([linear(part) for linear, part in zip(p.mix_out, low, strict=True)])
        xw, xk, xv, xr, xg = torch.addcmul(normed, delta, share.add_(p.mix))
        w = p.decay_out(torch.tanh(p.decay_in(xw)))
        return p.output(ops.wkv6(p.receptance(xr), p.key(xk), p.value(xv), p.gate(xg), w, p.head, s.wkv, rows))


ARCHITECTURES = (Rwkv6,)
