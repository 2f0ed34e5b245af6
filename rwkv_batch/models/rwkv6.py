"""RWKV-6: RWKV-5.2 with a decay and interpolations that depend on the input, each through a low-rank pair."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from .architecture import LayerState, RecurrenceCost
from .blocks import SHIFT_LERP, Norm, head_norm, widened
from .channel_mix import ChannelMix, output_scale, rescale
from .files.hf_layouts import fla_layout, number, transformers_layout
from .files.stored import AS_STORED, ROW, TRANSPOSED, LayerTargets, Restore, as_rows, renamed, row_of
from .matrices.linear import LinearGroup
from .matrices.low_rank import LOW_RANK, LowRank
from .matrices.product import LINEAR, Linear, silu
from .matrix_state import TIME_STATE, MatrixStateArchitecture
from .random_weights import (
    GATED_FEED_FORWARD,
    LAYER_NORMS,
    PROJECTIONS,
    Numbers,
    RandomWeights,
    matrix,
    norms,
    shares,
)
from .rows import Index, Rows
from .rwkv5 import PER_HEAD, Head5, gated_sizes, load_bonus, transformers_ln_x_eps
from .schema import FFN_RECEPTANCE, LAYER, LN0, LN_X, TOP, Schema
from .weights import StoredPair, Weights


def wkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor, head: Head5, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-6 state of each row through its tokens, and read it out.

    For each head, with the state S of shape [K, V] (row = key channel, column = value channel):

        y_t = r_t (S + diag(u) k_t^T v_t),   S ← diag(exp(-exp(d + w_t))) S + k_t^T v_t

    Args:
        r, k, v: [M, A], A = H * N.
        g: [M, A] gate before its SiLU.
        w: [M, A] output of the low-rank pair, added to the decay term d = `head.decay`.
        state: [P, H, K, V] float32 or float16. **Updated in place** in the rows' slots.

    Returns:
        group_norm(y) * silu(g): [M, A], dtype of `r`.
    """
    num_heads, size = head.bonus.shape
    r_, k_, v_, w_ = (widened(x).view(-1, num_heads, size) for x in (r, k, v, w))
    decay = torch.exp(-torch.exp(head.decay + w_))
    out = torch.zeros_like(r_)

    def advance(tokens: Index, s: Tensor) -> None:
        rt, kt, vt = r_[tokens], k_[tokens], v_[tokens]
        own = (rt * head.bonus * kt).sum(-1, keepdim=True)
        out[tokens] = torch.matmul(rt[:, :, None], s)[:, :, 0] + own * vt
        s.mul_(decay[tokens][..., None]).add_(kt[..., None] * vt[:, :, None])

    rows.scan((state,), advance)
    y = head_norm(out.flatten(1), head.norm, num_heads, head.eps)
    return (y * silu(widened(g))).to(r.dtype)


def ddlerp(normed: Tensor, delta: Tensor, shares: Tensor, mix: Tensor) -> Tensor:
    """Data-dependent interpolations of each token with the token before it: z + d * (shares[j] + mix[j]).

    Args:
        normed, delta: z and d of `shift_lerp`, [M, C].
        shares: [n, M, C]: the part of the previous token's share that depends on the input; may be overwritten.
        mix: [n, 1, C]: its constant part.

    Returns:
        [n, M, C].
    """
    return torch.addcmul(normed, delta, shares.add_(mix))


DDLERP = OpSpec("ddlerp", ddlerp, optional=True, is_recorded=False)


class TimeMix(NamedTuple):
    """The recurrent half of a v6 layer."""

    norm: Norm
    mix_x: Tensor
    """[1, C]: share of the previous token in the input of the low-rank interpolations."""
    mix: Tensor
    """[5, 1, C]: constant part of the previous token's share, for receptance, key, value, gate, decay."""
    shares: LowRank
    """C → R → C, five times: the part of the shares that depends on the input."""
    decay: LowRank
    """C → Rw → A."""
    head: Head5
    projections: LinearGroup
    """Receptance, key, value and gate."""
    output: Linear


_STORED = "wkvrg"
"""The order of the five interpolations in a checkpoint."""
_MIXED = "rkvgw"
"""Their order in `TimeMix`: first the inputs of the large matrices."""
_FLA_STORED = "rwkvg"
"""Their order in flash-linear-attention."""


def _in_stored_order(values: Tensor) -> Tensor:
    """Five blocks along the first axis, in flash-linear-attention's order → in a checkpoint's."""
    return values[[_FLA_STORED.index(letter) for letter in _STORED]]


def _columns_in_stored_order(values: Tensor) -> Tensor:
    """The same for five blocks of columns, [C, 5 R]."""
    return _in_stored_order(values.t().view(5, -1, len(values))).flatten(0, 1).t()


def _five_blocks(stored: Tensor) -> Tensor:
    """[C, 5 R] → [5, R, C]."""
    return stored.t().view(5, -1, len(stored))


_FLA: LayerTargets = {
    **renamed(
        {
            "attn.r_proj.linear": "att.receptance",
            "attn.k_proj.linear": "att.key",
            "attn.v_proj.linear": "att.value",
            "attn.g_proj.linear": "att.gate",
            "attn.o_proj": "att.output",
            "ffn.key.linear": "ffn.key",
            "ffn.value": "ffn.value",
            "ffn.receptance.linear": "ffn.receptance",
        }
    ),
    "attn.x_proj.0.mu": (("att.time_maa_x", ROW),),
    "attn.x_proj.0.linear.weight": (("att.time_maa_w1", Restore(Tensor.t, _columns_in_stored_order)),),
    "attn.x_proj.2.weight": (("att.time_maa_w2", Restore(_five_blocks, _in_stored_order)),),
    "attn.x_bias": tuple((f"att.time_maa_{c}", row_of(i)) for i, c in enumerate(_FLA_STORED)),
    "attn.w_proj.linear.lora.0.weight": (("att.time_decay_w1", TRANSPOSED),),
    "attn.w_proj.linear.lora.2.weight": (("att.time_decay_w2", TRANSPOSED),),
    "attn.w_proj.linear.lora.2.bias": (("att.time_decay", ROW),),
    "attn.bonus": (("att.time_faaaa", AS_STORED),),
    "ffn.key.mu": (("ffn.time_maa_k", ROW),),
    "ffn.receptance.mu": (("ffn.time_maa_r", ROW),),
}
"""Names in flash-linear-attention → canonical tensors."""


def published_sizes(C: int) -> dict[str, int]:
    """The sizes of published models that follow from the width C; models of width 4096 and more have wider pairs."""
    rank = 32 if C < 4096 else 64
    return {**gated_sizes(C), "R": rank, "5R": 5 * rank, "Rw": 2 * rank}


class Rwkv6(MatrixStateArchitecture):
    """RWKV-6 (Finch)."""

    name = "rwkv6"
    ops = (SHIFT_LERP, LINEAR, LOW_RANK, DDLERP, OpSpec("wkv6", wkv6))
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
        one_of=(("att.time_first", "att.time_faaaa"),),
        first_only=LN0,
        initial_state=TIME_STATE,
    )
    hugging_face = (
        fla_layout("rwkv6", _FLA, lambda config: number(config, "norm_eps")),
        transformers_layout("rwkv6", ln_x_eps=transformers_ln_x_eps),
    )
    chatrwkv: ClassVar[LayerTargets] = {
        **as_rows(*(f"att.time_maa_{c}" for c in "xwkvrg"), *(f"ffn.time_maa_{c}" for c in "kr"), "att.time_decay"),
        "att.time_first": (("att.time_faaaa", PER_HEAD),),
    }

    layers: list[tuple[TimeMix, ChannelMix]]

    @classmethod
    def refine_sizes(cls, sizes: dict[str, int]) -> str | None:
        if sizes["5R"] != 5 * sizes["R"]:
            return f"att.time_maa_w1 has {sizes['5R']} columns, expected 5 * {sizes['R']}"
        return super().refine_sizes(sizes)

    def load_layer(self, weights: Weights, i: int) -> tuple[TimeMix, ChannelMix]:
        p = f"blocks.{i}.att."
        scale = output_scale(weights, i)
        num_heads, size = self.sizes["H"], self.sizes["N"]
        factors = (weights.tensor(p + "time_maa_w1").chunk(5, dim=1), weights.tensor(p + "time_maa_w2"))
        stored = dict(zip(_STORED, zip(*factors, strict=True), strict=True))
        time_mix = TimeMix(
            norm=weights.norm(f"blocks.{i}.ln1"),
            mix_x=weights.vectors(p + "time_maa_x"),
            mix=weights.vectors(*(p + "time_maa_" + c for c in _MIXED))[:, None],
            shares=weights.low_rank(*(StoredPair(0, "tanh", *stored[c]) for c in _MIXED)),
            decay=weights.low_rank(
                StoredPair(0, "tanh", weights.tensor(p + "time_decay_w1"), weights.tensor(p + "time_decay_w2"))
            ),
            head=Head5(
                decay=weights.float_vector(p + "time_decay").view(num_heads, size),
                bonus=load_bonus(weights, p).view(num_heads, size),
                norm=weights.norm(p + "ln_x", torch.float32),
                eps=self.ln_x_eps,
            ),
            projections=weights.linears(*(p + f"{name}.weight" for name in ("receptance", "key", "value", "gate"))),
            output=weights.linear(p + "output.weight", scale),
        )
        mix = weights.vectors(f"blocks.{i}.ffn.time_maa_k", f"blocks.{i}.ffn.time_maa_r")
        return time_mix, ChannelMix.load(weights, i, mix, scale)

    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> None:
        time_mix, channel_mix = self.layers[i]
        self._time_mix(x, time_mix, state, rows, ops)
        channel_mix.add_to(x, state.ffn_shift, rows, ops)
        if self.rescales:
            rescale(x, i)

    @staticmethod
    def _time_mix(x: Tensor, p: TimeMix, s: LayerState, rows: Rows, ops: OpTable) -> None:
        """Adds to x in place."""
        normed, delta, mixed = ops.shift_lerp(x, p.norm, p.mix_x, s.att_shift, rows, keep_parts=True)
        assert normed is not None and delta is not None
        mixed = ops.ddlerp(normed, delta, ops.low_rank(mixed, p.shares), p.mix)
        r, k, v, g = p.projections(mixed[:4])
        (w,) = ops.low_rank(mixed[4:], p.decay)
        p.output(ops.wkv6(r, k, v, g, w, p.head, s.wkv, rows), out=x)

    random_weights = RandomWeights(
        {
            **LAYER_NORMS,
            **shares("att.time_maa_", "xwkvrg"),
            "att.time_maa_w1": Numbers(over=("C",)),
            "att.time_maa_w2": Numbers(0.1),
            "att.time_decay": Numbers(is_row=True),
            "att.time_decay_w1": Numbers(over=("C",)),
            "att.time_decay_w2": Numbers(0.5, over=("Rw",)),
            "att.time_faaaa": Numbers(0.5),
            **PROJECTIONS,
            **matrix("att.gate"),
            **norms("att.ln_x"),
            **shares("ffn.time_maa_", "kr"),
            **GATED_FEED_FORWARD,
        },
        published_sizes,
    )
    recurrence_cost = RecurrenceCost(operations=5, vectors=6)


ARCHITECTURES = (Rwkv6,)
