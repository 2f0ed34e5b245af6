"""The channel mix (feed-forward half of a layer) and the float16 rescaling of v4, v5 and v6."""

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
"""A float16 residual stream is halved after each group of this many layers, as in ChatRWKV.

The residual stream grows with the layers, beyond float16's range of 65504. The output matrices of the layers after a
halving are halved as often. The layer norms that read the stream cancel the factor; powers of two are exact.
"""


class ChannelMix(NamedTuple):
    """The feed-forward half of a v4, v5 or v6 layer."""

    norm: Norm
    mix: Tensor
    """[2, C]: the weight of the previous token, for the key and the receptance."""
    receptance: Linear
    key: Linear
    value: Linear

    @classmethod
    def load(cls, weights: Weights, i: int, mix: Tensor, scale: float) -> ChannelMix:
        """Load the channel mix of layer i, with its output matrix times `scale`."""
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
    """The weights of the previous token, [len(names), C]. v4 and v5 files have 1 - those, of the current one."""
    return (1 - torch.stack([weights.float_vector(name) for name in names])).to(weights.dtype)


def output_scale(weights: Weights, i: int) -> float:
    """The factor on the output matrices of layer i: 1/2 for each halving of the residual stream before it."""
    return 2.0 ** -(i // RESCALE_EVERY) if weights.rescales else 1.0


def rescale(x: Tensor, i: int) -> None:
    """Halve the residual stream in place, if layer i is the last of a group of `RESCALE_EVERY` layers."""
    if (i + 1) % RESCALE_EVERY == 0:
        x.mul_(0.5)
