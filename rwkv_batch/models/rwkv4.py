"""RWKV-4: a scalar recurrence for each channel, whose state is scaled by an exponent so that it never overflows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..ops import OpSpec, OpTable
from .architecture import Architecture, LayerState, RecurrenceCost, StateField
from .blocks import SHIFT_LERP, Norm, widened
from .channel_mix import ChannelMix, output_scale, previous_share, rescale
from .files.hf_layouts import transformers_layout
from .files.stored import LayerTargets, Restore, as_rows
from .matrices.linear import LinearGroup
from .matrices.product import LINEAR, Linear, sigmoid
from .random_weights import GATED_FEED_FORWARD, LAYER_NORMS, PROJECTIONS, Numbers, RandomWeights, shares
from .rows import Index, Rows
from .schema import FFN_RECEPTANCE, LAYER, LN0, TOP, Schema
from .weights import Weights


def wkv4(
    r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, aa: Tensor, bb: Tensor, pp: Tensor, rows: Rows
) -> Tensor:
    """Advance the RWKV-4 state of each row through its tokens, and read it out. Elementwise over channels:

        y_t = (e^{p-q} a + e^{u+k_t-q} v_t) / (e^{p-q} b + e^{u+k_t-q}),   q = max(p, u + k_t)
        a, b ← e^{p+w-q} a + e^{k_t-q} v_t, e^{p+w-q} b + e^{k_t-q};   p ← q,   q = max(p + w, k_t)

    Args:
        r, k, v: [M, A].
        decay: w, [A] float32, negative (log of the factor per token).
        bonus: u, [A] float32, added to the current token's key.
        aa, bb, pp: [P, A] float32: a, b and the exponent p they are scaled by. **Updated in place** in the rows' slots.

    Returns:
        sigmoid(r) * y: [M, A], dtype of `r`.
    """
    keys, values = widened(k), widened(v)
    out = torch.zeros_like(keys)

    def advance(tokens: Index, a: Tensor, b: Tensor, p: Tensor) -> None:
        key, value = keys[tokens], values[tokens]
        boosted = bonus + key
        q = torch.maximum(p, boosted)
        past, now = torch.exp(p - q), torch.exp(boosted - q)
        out[tokens] = (past * a + now * value) / (past * b + now)
        decayed = p + decay
        q = torch.maximum(decayed, key)
        past, now = torch.exp(decayed - q), torch.exp(key - q)
        a.mul_(past).addcmul_(now, value)
        b.mul_(past).add_(now)
        p.copy_(q)

    rows.scan((aa, bb, pp), advance)
    return out.mul_(sigmoid(widened(r))).to(r.dtype)


class TimeMix(NamedTuple):
    """The recurrent half of a v4 layer."""

    norm: Norm
    mix: Tensor
    """[3, C]: share of the previous token, for key, value, receptance."""
    decay: Tensor
    bonus: Tensor
    projections: LinearGroup
    """Key, value and receptance."""
    output: Linear


TRANSFORMERS_MIXES = {
    "time_mix_key": "time_mix_k",
    "time_mix_value": "time_mix_v",
    "time_mix_receptance": "time_mix_r",
    "time_mix_gate": "time_mix_g",
}
"""Interpolations of v4 and v5: the last word of their names in transformers → in a checkpoint."""


class Rwkv4(Architecture):
    """RWKV-4 (Raven, Pile, early World)."""

    name = "rwkv4"
    ops = (SHIFT_LERP, LINEAR, OpSpec("wkv4", wkv4))
    schema = Schema(
        top=TOP,
        layer={
            **LAYER,
            **FFN_RECEPTANCE,
            **{"att.time_mix_" + c: "C" for c in "kvr"},
            **{"ffn.time_mix_" + c: "C" for c in "kr"},
            "att.time_decay": "A",
            "att.time_first": "A",
        },
        first_only=LN0,
    )
    hugging_face = (transformers_layout("rwkv", TRANSFORMERS_MIXES),)
    chatrwkv: ClassVar[LayerTargets] = {
        **as_rows(*(f"att.time_mix_{c}" for c in "kvr"), *(f"ffn.time_mix_{c}" for c in "kr")),
        "att.time_decay": (("att.time_decay", Restore(values=lambda factor: torch.log(-factor))),),
    }
    """ChatRWKV stores -exp(time_decay)."""

    layers: list[tuple[TimeMix, ChannelMix]]

    @classmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        if state_dtype != torch.float32:
            raise ConfigurationError(
                f"got {state_dtype}, expected float32: {cls.name} has no matrix state", setting="state_dtype"
            )
        shift, channel = (sizes["C"],), (sizes["A"],)
        return (
            StateField("aa", channel, torch.float32),
            StateField("bb", channel, torch.float32),
            StateField("pp", channel, torch.float32, initial_value=-1e30),
            StateField("att_shift", shift, dtype),
            StateField("ffn_shift", shift, dtype),
        )

    def load_layer(self, weights: Weights, i: int) -> tuple[TimeMix, ChannelMix]:
        p = f"blocks.{i}.att."
        scale = output_scale(weights, i)
        time_mix = TimeMix(
            norm=weights.norm(f"blocks.{i}.ln1"),
            mix=previous_share(weights, *(p + "time_mix_" + c for c in "kvr")),
            decay=-torch.exp(weights.float_vector(p + "time_decay")),
            bonus=weights.float_vector(p + "time_first"),
            projections=weights.linears(*(p + f"{name}.weight" for name in ("key", "value", "receptance"))),
            output=weights.linear(p + "output.weight", scale),
        )
        mix = previous_share(weights, f"blocks.{i}.ffn.time_mix_k", f"blocks.{i}.ffn.time_mix_r")
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
        _, _, mixed = ops.shift_lerp(x, p.norm, p.mix, s.att_shift, rows)
        k, v, r = p.projections(mixed)
        p.output(ops.wkv4(r, k, v, p.decay, p.bonus, s.aa, s.bb, s.pp, rows), out=x)

    random_weights = RandomWeights(
        {
            **LAYER_NORMS,
            "att.time_decay": Numbers(),
            "att.time_first": Numbers(),
            **shares("att.time_mix_", "kvr"),
            **PROJECTIONS,
            **shares("ffn.time_mix_", "kr"),
            **GATED_FEED_FORWARD,
        }
    )
    recurrence_cost = RecurrenceCost(operations=12, vectors=4)


ARCHITECTURES = (Rwkv4,)
