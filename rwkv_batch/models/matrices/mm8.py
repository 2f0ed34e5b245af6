"""ChatRWKV's 8-bit form of a weight matrix, mm8: a byte for each weight, a minimum and a range for each channel.

With j an input channel and n an output channel, a weight is

    w[n, j] = (q[j, n] + 0.5) * ry[j] * rx[n] + my[j] + mx[n]

The byte q is the index of one of 256 equal intervals; q + 0.5 is the middle of that interval.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 18
"""Weights in a block that is quantized or dequantized: each float32 temporary takes 1 MiB."""


@dataclass(frozen=True, eq=False)
class Mm8Weight:
    """A weight [C_out, C_in] in 8-bit form.

    Args:
        q: [C_in, C_out], uint8, of any strides.
        mx, rx: [C_out], minimum of each output channel, and its range / 16.
        my, ry: [C_in], minimum of each input channel, and its range / 16. (16 * 16 = 256, the number of intervals.)

    Raises:
        ValueError: a shape or a dtype does not fit the others.
    """

    q: Tensor
    mx: Tensor
    rx: Tensor
    my: Tensor
    ry: Tensor

    def __post_init__(self) -> None:
        if self.q.dtype != torch.uint8 or self.q.dim() != 2:
            raise ValueError(f"q is {self.q.dtype} {tuple(self.q.shape)}, expected torch.uint8 [C_in, C_out]")
        lengths = {"mx": self.out_features, "rx": self.out_features, "my": self.in_features, "ry": self.in_features}
        for name, length in lengths.items():
            vector: Tensor = getattr(self, name)
            if vector.shape != (length,) or not vector.is_floating_point():
                raise ValueError(
                    f"{name} is {vector.dtype} {tuple(vector.shape)}, expected a float vector [{length}] "
                    f"beside q {tuple(self.q.shape)}"
                )

    @property
    def in_features(self) -> int:
        return self.q.shape[0]

    @property
    def out_features(self) -> int:
        return self.q.shape[1]

    def scaled(self, scale: float) -> Mm8Weight:
        """The matrix times `scale`, with minima and ranges in float32; exact for a power of two."""
        mx, rx, my = (vector.float() * scale for vector in (self.mx, self.rx, self.my))
        return Mm8Weight(self.q, mx, rx, my, self.ry.float())


def quantize_mm8(weight: Tensor) -> Mm8Weight:
    """Quantize a weight [C_out, C_in] of any float dtype, with ChatRWKV's arithmetic; minima and ranges are float32.

    The minima that are subtracted first are those of the larger side, as in ChatRWKV: of the input channels where
    C_in > C_out, else of the output channels. A channel whose weights are all equal has range 0, and dequantizes to its
    constant exactly. The weight is read three times, in blocks: the
    minima of one side; the other minima and the ranges; the bytes. No float32 copy of the whole weight is made.

    Raises:
        ValueError: `weight` is not a float matrix, or holds a value that is not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype} {tuple(weight.shape)}, expected a float matrix [C_out, C_in]")
    n_out, n_in = weight.shape
    inputs_first = n_in > n_out
    mx, my = weight.new_zeros(n_out, dtype=torch.float32), weight.new_full((n_in,), torch.inf, dtype=torch.float32)
    rx, ry = torch.zeros_like(mx), torch.zeros_like(my)

    def above_minima(rows: slice) -> Tensor:
        first, second = (my, mx[rows, None]) if inputs_first else (mx[rows, None], my)
        return (weight[rows].float() - first).sub_(second)

    for rows in _row_blocks(n_out, n_in):
        block = weight[rows].float()
        if not inputs_first:
            mx[rows] = block.amin(1)
            block = block - mx[rows, None]
        my = torch.minimum(my, block.amin(0))
    for rows in _row_blocks(n_out, n_in):
        if inputs_first:
            mx[rows] = (weight[rows].float() - my).amin(1)
        block = above_minima(rows)
        rx[rows] = block.amax(1)
        ry = torch.maximum(ry, block.div_(_divisor(rx[rows, None])).amax(0))
    if not (torch.isfinite(rx).all() and torch.isfinite(ry).all()):
        raise ValueError("weight holds a value that is not finite")
    q = torch.empty(n_out, n_in, dtype=torch.uint8, device=weight.device)
    for rows in _row_blocks(n_out, n_in):
        block = above_minima(rows).div_(_divisor(rx[rows, None])).div_(_divisor(ry))
        q[rows] = block.mul_(256).floor_().clamp_(0, 255).to(torch.uint8)
    return Mm8Weight(q.t(), mx, rx / 16, my, ry / 16)


def dequantize_mm8(w: Mm8Weight, dtype: torch.dtype) -> Tensor:
    """The weight [C_out, C_in] of an 8-bit form, contiguous, computed in float32 and rounded once to `dtype`."""
    weight = torch.empty(w.out_features, w.in_features, dtype=dtype, device=w.q.device)
    mx, rx, my, ry = (vector.float() for vector in (w.mx, w.rx, w.my, w.ry))
    for rows in _row_blocks(*weight.shape):
        block = w.q[:, rows].t().float().add_(0.5)
        weight[rows] = block.mul_(ry).mul_(rx[rows, None]).add_(my).add_(mx[rows, None])
    return weight


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows, each of at most `_BLOCK_ELEMENTS` elements, or of one row."""
    step = max(1, _BLOCK_ELEMENTS // n_columns)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _divisor(ranges: Tensor) -> Tensor:
    """`ranges` with 1 for 0. A channel of range 0 holds only zeros here, which any divisor leaves as they are."""
    return torch.where(ranges == 0, 1.0, ranges)
