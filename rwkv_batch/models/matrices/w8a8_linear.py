"""The weight format "w8a8": the ops `w8a8` and `w8a16`, products of 8-bit weights with 8-bit or 16-bit inputs.

Weights and inputs become whole numbers, which processors multiply much faster than floats. Because inputs are rounded
to 8 bits, results are less accurate than those of the other formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...ops import Implementation, OpSpec
from .linear import StackedLinear
from .product import Activation, Linear, OpLinear, finish
from .weight_format import MatrixReader, WeightFormat

LEVELS = 127
"""The largest magnitude of a quantized weight, and of an input of 8 bits. -128 is not used: ranges are symmetric."""

WIDE_INPUT_MATRIX = "ffn.value.weight"
"""The matrix whose inputs keep more than 8 bits. Its inputs are squared ReLUs: a few of a row are so much larger than
the others that 8 bits, with one scale for the row, would round the others to zero. The weight is rounded to 8 bits as
all are. A CPU multiplies it with inputs of 16 bits (`w8a16`); on other devices it is a dense matrix of the rounded
values."""


def quantize_w8a8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight with one scale for each output channel: weight ≈ q * scale.

    Args:
        weight: [C_out, C_in], any float dtype, on the device where it is multiplied.

    Returns:
        q [C_out, C_in] int8 within ±127, rounded half to even, and scale [C_out] float32.

    Raises:
        ValueError: a value of `weight` is not finite.
    """
    weight = weight.float()
    scale = _scale(weight)
    if not torch.isfinite(scale).all():
        raise ValueError("weight holds a value that is not finite")
    return (weight / scale).round_().to(torch.int8), scale[:, 0].contiguous()


def _scale(x: Tensor, levels: int = LEVELS) -> Tensor:
    """[..., n, C] float32 → [..., n, 1]: the largest magnitude of each row / levels; 1 for a row of zeros."""
    peak = x.abs().amax(-1, keepdim=True)
    # To divide by a Python number, a GPU multiplies by its inverse, which rounds otherwise than a CPU's division.
    scale = peak / torch.full_like(peak, levels)
    return torch.where(scale == 0, 1.0, scale)


def w8a8(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    activation: Activation | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """act(y) * gate, or that added to `out`, with a product y of whole numbers. Each row of x gets its own scale s.

        s[m] = max_k |x[m, k]| / 127,   p[m, k] = round(x[m, k] / s[m])
        y[m, n] = (sum_k p[m, k] q[n, k]) * (s[m] * scale[n])

    The sum is exact, hence equal in every order: rows are batch-invariant. The error of an input is at most s[m] / 2.

    Args:
        x: [M, C_in], or [n, M, C_in] for n products of one shape.
        q: [C_out, C_in] or [n, C_out, C_in] int8.
        scale: [C_out] or [n, C_out] float32.
        gate, out, dtype: as in `linear` of models/matrices/product.py.

    Returns:
        [M, C_out] or [n, M, C_out].
    """
    return _multiply(LEVELS, x, q, scale, activation, gate, out, dtype)


def w8a16(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    activation: Activation | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`w8a8` with inputs of up to 16 bits: p is within ±levels, the largest that keep every sum within int32.

    A sum is at most C_in * 127 * levels. Up to C_in = 516 the levels are 32767, all of 16 bits; for 14336 they are
    1179.
    """
    levels = min(2**15 - 1, (2**31 - 1) // (LEVELS * x.shape[-1]))
    return _multiply(levels, x, q, scale, activation, gate, out, dtype)


def _multiply(
    levels: int,
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    activation: Activation | None,
    gate: Tensor | None,
    out: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """`w8a8` with inputs within ±levels."""
    inputs = x.float()
    row_scale = _scale(inputs, levels)
    # float64 holds the products and their sums exactly, in any order.
    sums = (inputs / row_scale).round_().double() @ q.double().transpose(-1, -2)
    y = sums.float().mul_(row_scale * scale[..., None, :])
    return finish(y if dtype == torch.float32 else y.to(x.dtype), activation, gate, out, dtype)


W8A8 = OpSpec("w8a8", w8a8)
W8A16 = OpSpec("w8a16", w8a16, optional=True)


class W8A8Linear(OpLinear):
    """An int8 weight with a scale for each output channel, multiplied with inputs that are quantized row by row.

    Args:
        q, scale: [C_out, C_in] int8 and [C_out] float32, as `quantize_w8a8` makes them.
        op: what serves `w8a8` or `w8a16`.
        keep: moves q to where it is kept, before q is packed: see `LayerStream.keep`.
    """

    always_has_epilogue = True

    def __init__(
        self, q: Tensor, scale: Tensor, op: Implementation, keep: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(op, op.packed(keep(q) if keep is not None else q), q.shape, scale)
        self.rows_independent = True  # sums of whole numbers are exact in any order


class W8A8Format(WeightFormat):
    """int8 weights with a scale for each output channel; inputs are quantized to int8 too, a row at a time."""

    device_types = ("cpu", "cuda")

    def ops(self, device: torch.device) -> tuple[OpSpec, ...]:
        return (W8A8, W8A16) if device.type == "cpu" else (W8A8,)

    def bytes_per_weight(self, name: str, dtype: torch.dtype, device: torch.device) -> int:
        return dtype.itemsize if name.endswith(WIDE_INPUT_MATRIX) and device.type != "cpu" else 1

    def load(self, reader: MatrixReader, name: str, scale: float = 1.0) -> Linear:
        q, weight_scale = _quantize(reader, name, scale)
        has_wide_inputs = name.endswith(WIDE_INPUT_MATRIX)
        if has_wide_inputs and q.device.type != "cpu":
            return reader.make_dense(reader.kept((q * weight_scale[:, None]).to(reader.dtype)))
        op = W8A16 if has_wide_inputs else W8A8
        return W8A8Linear(q, weight_scale, reader.ops.implementations[op.name], reader.keep)

    def stack(self, reader: MatrixReader, names: Sequence[str]) -> StackedLinear | None:
        op = reader.ops.implementations[W8A8.name]
        if op.pack is None:
            return None
        q, scale = (torch.stack(parts) for parts in zip(*(_quantize(reader, name) for name in names), strict=True))
        packed = op.packed(q)
        return StackedLinear(packed, partial(op.function, scale=scale), packed.nbytes + scale.nbytes, len(names))


FORMAT = W8A8Format()


def _quantize(reader: MatrixReader, name: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """`quantize_w8a8` of a matrix times `scale`, on the reader's device."""
    try:
        return quantize_w8a8(reader.stored(name, scale).to(reader.device))
    except ValueError as error:
        raise CheckpointError(f"{reader.checkpoint.path}: {name}: {error}") from error
