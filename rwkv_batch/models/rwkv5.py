"""RWKV-5: a matrix state for each head. Three versions, with ChatRWKV's names, differ in their tensors:

5.0   no gate          one decay per head
5.1   gate             one decay per head
5.2   gate             one decay per key channel
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from .architecture import LayerState, RecurrenceCost
from .blocks import SHIFT_LERP, Norm, head_norm, widened
from .channel_mix import ChannelMix, output_scale, previous_share, rescale
from .files.hf_layouts import product, transformers_layout
from .files.stored import LayerTargets, Restore, as_rows
from .matrices.linear import LinearGroup
from .matrices.product import LINEAR, Linear, silu
from .matrix_state import TIME_STATE, MatrixStateArchitecture
from .random_weights import (
    GATED_FEED_FORWARD,
    LAYER_NORMS,
    PROJECTIONS,
    Numbers,
    RandomWeights,
    Recipe,
    matrix,
    norms,
    shares,
)
from .rows import Index, Rows
from .rwkv4 import TRANSFORMERS_MIXES
from .schema import FFN_RECEPTANCE, LAYER, LN0, LN_X, TOP, Schema, Shapes
from .weights import Weights


class Head5(NamedTuple):
    """Per-head parameters of a v5 or v6 layer, float32."""

    decay: Tensor
    """[H, K]. v5: factor per token on each key channel, in (0, 1). v6: the constant part d of log(-log(factor))."""
    bonus: Tensor
    """[H, K]: weight of the current token's own product."""
    norm: Norm
    """Group norm over heads, [A]."""
    eps: float


def wkv5(r: Tensor, k: Tensor, v: Tensor, g: Tensor | None, head: Head5, state: Tensor, rows: Rows) -> Tensor:
    """Advance the RWKV-5 state of each row through its tokens, and read it out.

    For each head, with the state S of shape [K, V] (row = key channel, column = value channel):

        y_t = r_t (S + diag(u) k_t^T v_t),   S ← diag(w) S + k_t^T v_t

    Args:
        r, k, v: [M, A], A = H * N.
        g: [M, A] gate before its SiLU, or None (5.0).
        state: [P, H, K, V] float32 or float16. **Updated in place** in the rows' slots.

    Returns:
        group_norm(y) * silu(g): [M, A], dtype of `r`.
    """
    num_heads, size = head.bonus.shape
    r_, k_, v_ = (widened(x).view(-1, num_heads, size) for x in (r, k, v))
    out = torch.zeros_like(r_)
    decay = head.decay[..., None]

    def advance(tokens: Index, s: Tensor) -> None:
        rt, kt, vt = r_[tokens], k_[tokens], v_[tokens]
        own = (rt * head.bonus * kt).sum(-1, keepdim=True)
        out[tokens] = torch.matmul(rt[:, :, None], s)[:, :, 0] + own * vt
        s.mul_(decay).add_(kt[..., None] * vt[:, :, None])

    rows.scan((state,), advance)
    y = head_norm(out.flatten(1), head.norm, num_heads, head.eps)
    return (y if g is None else y * silu(widened(g))).to(r.dtype)


class TimeMix(NamedTuple):
    """The recurrent half of a v5 layer."""

    norm: Norm
    mix: Tensor
    """[3 or 4, C]: share of the previous token, for key, value, receptance and, from 5.1 on, the gate."""
    head: Head5
    projections: LinearGroup
    """Key, value, receptance and, from 5.1 on, the gate."""
    output: Linear


_LAYER: Shapes = {
    **LAYER,
    **FFN_RECEPTANCE,
    **LN_X,
    **{"att.time_mix_" + c: "C" for c in "kvr"},
    **{"ffn.time_mix_" + c: "C" for c in "kr"},
}
_PER_HEAD: Shapes = {"att.time_decay": "H", "att.time_first": "H", "att.time_faaaa": "H"}
_PER_CHANNEL: Shapes = dict.fromkeys(_PER_HEAD, ("H", "N"))
_GATE: Shapes = {"att.gate.weight": ("A", "C"), "att.time_mix_g": "C"}


def _schema(*extra: Shapes) -> Schema:
    layer = dict(_LAYER)
    for tensors in extra:
        layer.update(tensors)
    return Schema(
        top=TOP,
        layer=layer,
        one_of=(("att.time_first", "att.time_faaaa"),),
        first_only=LN0,
        initial_state=TIME_STATE,
    )


def transformers_ln_x_eps(config: Mapping[str, Any]) -> float | None:
    """The epsilon of v5 and v6: that of the layer norm, times the square of the divisor of each head's output."""
    return product(config, "layer_norm_epsilon", "head_size_divisor", "head_size_divisor")


PER_HEAD = Restore(lambda stored: stored[:, 0, 0] if stored.shape[1] == 1 else stored[..., 0])
"""[H, 1, 1] → [H], and [H, N, 1] → [H, N]: ChatRWKV's shapes of decays and bonuses."""


def _random_layer(mixed: str, bonus: str, gate: Recipe) -> Recipe:
    """The distributions of a layer's tensors, in the order of the published files."""
    return {
        **LAYER_NORMS,
        **shares("att.time_mix_", mixed),
        "att.time_decay": Numbers(),
        bonus: Numbers(0.5),
        **PROJECTIONS,
        **gate,
        **norms("att.ln_x"),
        **shares("ffn.time_mix_", "kr"),
        **GATED_FEED_FORWARD,
    }


def gated_sizes(C: int) -> dict[str, int]:
    """The sizes of published models with a gate that follow from the width C: the channel mix is narrower."""
    return {"F": C * 7 // 2 // 32 * 32}


class Rwkv50(MatrixStateArchitecture):
    """RWKV-5.0: matrix state, one decay per head, no gate."""

    name = "rwkv5.0"
    ops = (SHIFT_LERP, LINEAR, OpSpec("wkv5", wkv5))
    schema = _schema(_PER_HEAD)
    mixed = "kvr"
    hugging_face = (transformers_layout("rwkv5", TRANSFORMERS_MIXES, transformers_ln_x_eps),)
    chatrwkv: ClassVar[LayerTargets] = {
        **as_rows(*(f"att.time_mix_{c}" for c in "kvrg"), *(f"ffn.time_mix_{c}" for c in "kr")),
        "att.time_decay": (("att.time_decay", PER_HEAD._replace(values=lambda factor: torch.log(-torch.log(factor)))),),
        "att.time_first": (("att.time_faaaa", PER_HEAD),),
    }
    """ChatRWKV stores exp(-exp(time_decay)). Its time_first is no logarithm: it holds the values of time_faaaa."""

    layers: list[tuple[TimeMix, ChannelMix]]

    def load_layer(self, weights: Weights, i: int) -> tuple[TimeMix, ChannelMix]:
        p = f"blocks.{i}.att."
        scale = output_scale(weights, i)
        matrices = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
        time_mix = TimeMix(
            norm=weights.norm(f"blocks.{i}.ln1"),
            mix=previous_share(weights, *(p + "time_mix_" + c for c in self.mixed)),
            head=self._load_head(weights, p),
            projections=weights.linears(*(p + f"{matrices[c]}.weight" for c in self.mixed)),
            output=weights.linear(p + "output.weight", scale),
        )
        mix = previous_share(weights, f"blocks.{i}.ffn.time_mix_k", f"blocks.{i}.ffn.time_mix_r")
        return time_mix, ChannelMix.load(weights, i, mix, scale)

    def _load_head(self, weights: Weights, p: str) -> Head5:
        num_heads, size = self.sizes["H"], self.sizes["N"]
        decay = torch.exp(-torch.exp(weights.float_vector(p + "time_decay")))
        return Head5(
            decay=decay.view(num_heads, -1).expand(num_heads, size).contiguous(),
            bonus=load_bonus(weights, p).view(num_heads, -1).expand(num_heads, size).contiguous(),
            norm=weights.norm(p + "ln_x", torch.float32),
            eps=self.ln_x_eps,
        )

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
        _, _, mixed = ops.shift_lerp(x, p.norm, p.mix, s.att_shift, rows)
        k, v, r, *g = p.projections(mixed)
        p.output(ops.wkv5(r, k, v, g[0] if g else None, p.head, s.wkv, rows), out=x)

    random_weights = RandomWeights(_random_layer("kvr", "att.time_first", {}))
    recurrence_cost = RecurrenceCost(operations=5, vectors=4)


class Rwkv51(Rwkv50):
    """RWKV-5.1: 5.0 with a gate."""

    name = "rwkv5.1"
    schema = _schema(_PER_HEAD, _GATE)
    mixed = "kvrg"
    random_weights = RandomWeights(_random_layer("kvrg", "att.time_faaaa", matrix("att.gate")), gated_sizes)
    recurrence_cost = RecurrenceCost(operations=5, vectors=5)


class Rwkv52(Rwkv51):
    """RWKV-5.2: 5.1 with a decay per key channel."""

    name = "rwkv5.2"
    schema = _schema(_PER_CHANNEL, _GATE)
    random_weights = RandomWeights(_random_layer("kvrg", "att.time_faaaa", matrix("att.gate")), gated_sizes)


def load_bonus(weights: Weights, p: str) -> Tensor:
    """`time_first` is stored as a logarithm, `time_faaaa` as it is used."""
    name = p + "time_faaaa"
    return weights.float_vector(name) if name in weights else torch.exp(weights.float_vector(p + "time_first"))


ARCHITECTURES = (Rwkv50, Rwkv51, Rwkv52)
