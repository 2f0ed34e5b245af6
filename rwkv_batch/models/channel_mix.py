"""What v4, v5 and v6 share: the feed-forward half of a layer, and the float16 rescaling of the residual stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import OpTable
from .blocks import Norm
from .matrices.product import Linear
from .rows import Rows
from .weights import Weights

RESCALE_EVERY = 6
"""Layers after which a float16 residual stream is halved (ChatRWKV's choice)."""


class ChannelMix(NamedTuple):
    """The feed-forward half of a v4, v5 or v6 layer."""

    norm: Norm
    mix: Tensor
    """[2, C]: share of the previous token, for the key and the receptance."""
    receptance: Linear
    key: Linear
    value: Linear

    @classmethod
    def load(cls, weights: Weights, i: int, mix: Tensor, scale: float) -> ChannelMix:
        p = f"blocks.{i}.ffn."
        return cls(
            norm=weights.norm(f"blocks.{i}.ln2"),
            mix=mix,
            receptance=weights.linear(p + "receptance.weight"),
            key=weights.linear(p + "key.weight"),
            value=weights.linear(p + "value.weight", scale),
        )

    def add_to(self, x: Tensor, shift: Tensor, rows: Rows, ops: OpTable) -> None:
        """x [M, C] += sigmoid(R x_r) * (V max(K x_k, 0)^2)."""
        _, _, (key, receptance) = ops.shift_lerp(x, self.norm, self.mix, shift, rows)
        gate = self.receptance(receptance, activation="sigmoid")
        self.value(self.key(key, activation="squared_relu"), gate=gate, out=x)


def previous_share(weights: Weights, *names: str) -> Tensor:
    """[len(names), C]. v4 and v5 store the share of the *current* token; that of the previous one is its complement."""
    return (1 - torch.stack([weights.float_vector(name) for name in names])).to(weights.dtype)


def output_scale(weights: Weights, i: int) -> float:
    """Factor on layer i's output matrices that keeps a float16 residual stream in range."""
    return 2.0 ** -(i // RESCALE_EVERY) if weights.rescales else 1.0


def rescale(x: Tensor, i: int) -> None:
    """Halve the residual stream after layer i, in place, where the next layers' output matrices are halved."""
    if (i + 1) % RESCALE_EVERY == 0:
        x.mul_(0.5)
