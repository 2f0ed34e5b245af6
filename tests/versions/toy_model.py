"""A version that exists for tests only: the smallest recurrence of its own, outside the package.

It shows all that a version needs: tensors, state, one op with its definition, loading, and one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_batch.models.architecture import Architecture, LayerState, RecurrenceCost, StateField
from rwkv_batch.models.blocks import SHIFT_LERP, Norm, widened
from rwkv_batch.models.matrices.linear import LinearGroup
from rwkv_batch.models.matrices.product import LINEAR, Linear, sigmoid
from rwkv_batch.models.random_weights import LAYER_NORMS, PROJECTIONS, Numbers, RandomWeights, matrix, shares
from rwkv_batch.models.rows import Index, Rows
from rwkv_batch.models.schema import LAYER, LN0, TOP, Schema
from rwkv_batch.models.weights import Weights
from rwkv_batch.ops import OpSpec, OpTable


def decayed_sum(r: Tensor, k: Tensor, v: Tensor, decay: Tensor, total: Tensor, rows: Rows) -> Tensor:
    """Advance the toy state of each row through its tokens, and read it out. Elementwise over channels:

        s ← d s + k_t v_t,   y_t = sigmoid(r_t) s

    Args:
        r, k, v: [M, A].
        decay: d, [A] float32, factor per token, in (0, 1).
        total: s, [P, A] float32 or float16. **Updated in place** in the rows' slots.

    Returns:
        [M, A], dtype of `r`.
    """
    products = widened(k) * widened(v)
    out = torch.zeros_like(products)

    def advance(tokens: Index, s: Tensor) -> None:
        s.mul_(decay).add_(products[tokens])
        out[tokens] = s

    rows.scan((total,), advance)
    return out.mul_(sigmoid(widened(r))).to(r.dtype)


class ToyLayer(NamedTuple):
    """The weights of one layer."""

    time_norm: Norm
    time_mix: Tensor
    """[3, C]: share of the previous token, for receptance, key and value."""
    decay: Tensor
    projections: LinearGroup
    """Receptance, key and value."""
    output: Linear
    channel_norm: Norm
    channel_mix: Tensor
    """[1, C]."""
    key: Linear
    value: Linear


class Toy(Architecture):
    """A decaying sum of products for each channel."""

    name = "toy"
    ops = (SHIFT_LERP, LINEAR, OpSpec("decayed_sum", decayed_sum))
    schema = Schema(
        top=TOP,
        layer={**LAYER, **{"att.share_" + c: "C" for c in "rkv"}, "att.log_decay": "A", "ffn.share_k": "C"},
        first_only=LN0,
    )
    layers: list[ToyLayer]

    @classmethod
    def state_fields(
        cls, sizes: Mapping[str, int], dtype: torch.dtype, state_dtype: torch.dtype
    ) -> tuple[StateField, ...]:
        return (
            StateField("total", (sizes["A"],), state_dtype),
            StateField("att_shift", (sizes["C"],), dtype),
            StateField("ffn_shift", (sizes["C"],), dtype),
        )

    def load_layer(self, weights: Weights, i: int) -> ToyLayer:
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        return ToyLayer(
            time_norm=weights.norm(f"blocks.{i}.ln1"),
            time_mix=weights.vectors(*(att + "share_" + c for c in "rkv")),
            decay=torch.exp(-torch.exp(weights.float_vector(att + "log_decay"))),
            projections=weights.linears(*(att + f"{name}.weight" for name in ("receptance", "key", "value"))),
            output=weights.linear(att + "output.weight"),
            channel_norm=weights.norm(f"blocks.{i}.ln2"),
            channel_mix=weights.vectors(ffn + "share_k"),
            key=weights.linear(ffn + "key.weight"),
            value=weights.linear(ffn + "value.weight"),
        )

    def layer(
        self, i: int, x: Tensor, first: Tensor | None, token_ids: Tensor, state: LayerState, rows: Rows, ops: OpTable
    ) -> None:
        p = self.layers[i]
        _, _, mixed = ops.shift_lerp(x, p.time_norm, p.time_mix, state.att_shift, rows)
        r, k, v = p.projections(mixed)
        p.output(ops.decayed_sum(r, k, v, p.decay, state.total, rows), out=x)
        _, _, (k,) = ops.shift_lerp(x, p.channel_norm, p.channel_mix, state.ffn_shift, rows)
        p.value(p.key(k, activation="squared_relu"), out=x)

    random_weights = RandomWeights(
        {
            **LAYER_NORMS,
            **shares("att.share_", "rkv"),
            "att.log_decay": Numbers(),
            **PROJECTIONS,
            **shares("ffn.share_", "k"),
            **matrix("ffn.key"),
            **matrix("ffn.value", over="F", gain=0.5),
        }
    )
    recurrence_cost = RecurrenceCost(operations=2, vectors=4)
