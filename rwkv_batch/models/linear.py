"""Matrices as the model sees them, by how they are stored and in what pieces they are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError, ConfigurationError
from ..ops import OpSpec, OpTable
from .mm8_linear import MM8, Mm8Linear
from .product import Activation, Linear, linear
from .w8a8_linear import W8A8, W8A16, W8A8Linear, quantize_w8a8

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Quantization = Literal["int8", "w8a8"]
QUANTIZATIONS = (None, *get_args(Quantization))

NOT_W8A8 = "ffn.value.weight"
"""What squared ReLUs go into: a few inputs are so much larger than the rest that 8 bits would round the rest away.
It is rounded to 8 bits, and multiplied with inputs of 16 bits on a CPU; elsewhere it is dense, of the same values."""


DEFINITIONS = OpTable({spec.name: spec.reference for spec in (MM8, W8A8, W8A16)}, ())


def quantized_ops(quantization: str | None, device: torch.device) -> tuple[OpSpec, ...]:
    """What 8-bit weights need from kernels."""
    if quantization == "w8a8":
        return (W8A8, W8A16) if device.type == "cpu" else (W8A8,)
    return (MM8,) if quantization == "int8" else ()


class DenseLinear(Linear):
    """A weight [C_out, C_in] of any float dtype. The product is in that dtype, the result in the dtype of x.

    Args:
        weight: as `op` reads it, with a shape, a dtype and a number of bytes.
        op: the implementation of `linear` that serves.
    """

    def __init__(self, weight: Any, op: Callable[..., Tensor] = linear) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self._op = op

    def product(self, x: Tensor) -> Tensor:
        return self(x)

    def write(self, x: Tensor, y: Tensor) -> None:
        if isinstance(self.weight, Tensor):
            super().write(x, y)
        else:
            self._op(x.to(self.weight.dtype), self.weight, into=y)

    def relocate(self, move: Callable[[Tensor], Tensor]) -> None:
        self.weight = move(self.weight)

    def __call__(
        self,
        x: Tensor,
        activation: Activation | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return self._op(x.to(self.weight.dtype), self.weight, activation, gate, out, dtype or x.dtype)


class FixedRowsLinear(Linear):
    """Always multiplies the same number of rows at once, so that a row's result cannot depend on how many there are.

    A matrix product's order of summation depends on its shape, hence, without this, on the size of the batch.
    """

    ROWS = 32

    def __init__(self, linear: Linear) -> None:
        self._linear = linear
        self.in_features, self.out_features, self.nbytes = linear.in_features, linear.out_features, linear.nbytes

    def product(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, -len(x) % self.ROWS))
        return torch.cat([self._linear(block) for block in torch.split(padded, self.ROWS)])[: len(x)]


class LinearGroup:
    """n matrices [C_out, C_in], each with an input of its own: [n, M, C_in] → n tensors [M, C_out]."""

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = linears

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        return [linear(part) for linear, part in zip(self._linears, x, strict=True)]


class StackedLinear(LinearGroup):
    """n matrices side by side, [n, C_out, C_in], multiplied in one go by an op that serves such.

    Args:
        weight: as `op` reads it.
    """

    def __init__(self, weight: Any, op: Callable[..., Tensor]) -> None:
        self._weight = weight
        self._op = op

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        return self._op(x, self._weight).unbind()


def make_linear(
    checkpoint: Checkpoint,
    name: str,
    *,
    dtype: torch.dtype,
    quantization: Quantization | str | None,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
    op: Callable[..., Tensor] = linear,
    ops: OpTable | None = None,
) -> Linear:
    """Load one matrix.

    Args:
        name: a matrix [C_out, C_in] of the checkpoint. If the file holds it in 8-bit form, that form is taken as it is
            for "int8", and dequantised once for the others. Otherwise it is quantised on `device`.
        dtype: of a dense weight; an 8-bit form follows the dtype of its input.
        quantization: None, "int8" (mm8) or "w8a8" (but for `NOT_W8A8`).
        op: the implementation of `linear` for dense weights.
        ops: implementations for 8-bit weights; their definitions where None.
        scale: multiplies the weight; exact where it is a power of two that neither overflows nor underflows `dtype`.

    Raises:
        ConfigurationError: an unknown `quantization`.
        CheckpointError: the matrix can't be quantised.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigurationError(f"got {quantization!r}, expected null, 'int8' or 'w8a8'", setting="quantization")
    if quantization == "int8":
        return Mm8Linear(checkpoint.as_mm8(name, device).scaled(scale), device, ops or DEFINITIONS)
    weight = checkpoint.tensor(name)
    if scale != 1.0:
        weight = weight * scale
    if quantization == "w8a8":
        return _w8a8_linear(name, *_whole_numbers(checkpoint, name, weight.to(device)), dtype, op, ops or DEFINITIONS)
    return DenseLinear(weight.to(device, dtype).contiguous(), op)


def stack_w8a8(checkpoint: Checkpoint, names: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantise n matrices of one shape: q [n, C_out, C_in] int8 and scale [n, C_out] float32.

    Raises:
        CheckpointError: one of them can't be quantised.
    """
    weights = [_whole_numbers(checkpoint, name, checkpoint.tensor(name).to(device)) for name in names]
    q, scale = (torch.stack(parts) for parts in zip(*weights, strict=True))
    return q, scale


def _whole_numbers(checkpoint: Checkpoint, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return quantize_w8a8(weight)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {name}: {error}") from error


def _w8a8_linear(
    name: str, q: Tensor, scale: Tensor, dtype: torch.dtype, op: Callable[..., Tensor], ops: OpTable
) -> Linear:
    if not name.endswith(NOT_W8A8):
        return W8A8Linear(q, scale, ops)
    if q.device.type == "cpu":
        return W8A8Linear(q, scale, ops, W8A16)
    return DenseLinear((q * scale[:, None]).to(dtype), op)
