"""Matrices as the model sees them: dense and 8-bit ones, in pieces of a fixed number of rows, or on another device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CheckpointError, ConfigurationError
from ...ops import Implementation, OpSpec, OpTable
from .mm8_linear import MM8, Mm8Linear
from .product import LINEAR_DEFINITION, Activation, Linear
from .w8a8_linear import W8A8, W8A16, W8A8Linear, quantize_w8a8

if TYPE_CHECKING:
    from ..files.checkpoint import Checkpoint

Quantization = Literal["int8", "w8a8"]
QUANTIZATIONS = (None, *get_args(Quantization))

WIDE_INPUT_MATRIX = "ffn.value.weight"
"""The matrix that "w8a8" does not multiply with inputs of 8 bits. Its inputs are squared ReLUs: a few are so much
larger than the others that 8 bits would round the others to zero. The weight is rounded to 8 bits; on a CPU it is
multiplied with inputs of 16 bits, elsewhere it is a dense matrix of the rounded values."""

REFERENCE_OPS = OpTable.of(**{spec.name: spec.definition for spec in (MM8, W8A8, W8A16)})
"""The definitions of the ops that multiply 8-bit weights."""


def quantized_ops(quantization: str | None, device: torch.device) -> tuple[OpSpec, ...]:
    """The ops that multiply 8-bit weights on this device."""
    if quantization == "w8a8":
        return (W8A8, W8A16) if device.type == "cpu" else (W8A8,)
    return (MM8,) if quantization == "int8" else ()


class DenseLinear(Linear):
    """A weight [C_out, C_in] of any float dtype. The product is in that dtype, the result in the dtype of x.

    Args:
        weight: as `op` takes it: a tensor, or a packed weight with `shape`, `dtype` and `nbytes`.
        op: what serves `linear`.
    """

    def __init__(self, weight: Any, op: Implementation = LINEAR_DEFINITION) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self.rows_independent = op.rows_independent
        self._op = op

    def product(self, x: Tensor) -> Tensor:
        return self(x)

    def write(self, x: Tensor, y: Tensor) -> None:
        if self._op.writes_into:
            self._op.function(x.to(self.weight.dtype), self.weight, into=y)
        else:
            super().write(x, y)

    def __call__(
        self,
        x: Tensor,
        activation: Activation | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        inputs = x.to(self.weight.dtype)
        y: Tensor = self._op.function(inputs, self.weight, activation, gate, out, dtype or x.dtype)
        return y


class FixedRowsLinear(Linear):
    """Always multiplies the same number of rows at once, so that a row's result cannot depend on how many there are.

    A matrix product's order of summation depends on its shape, hence, without this, on the size of the batch.
    """

    ROWS = 32
    rows_independent = True

    def __init__(self, linear: Linear) -> None:
        self._linear, self.weight = linear, linear.weight
        self.in_features, self.out_features, self.nbytes = linear.in_features, linear.out_features, linear.nbytes

    def product(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, -len(x) % self.ROWS))
        return torch.cat([self._linear(block) for block in torch.split(padded, self.ROWS)])[: len(x)]


class RemoteLinear(Linear):
    """A matrix on another device than its inputs: rows are copied there, and results are copied back.

    Args:
        device: where `linear` is.
    """

    def __init__(self, linear: Linear, device: torch.device) -> None:
        self._linear, self._device, self.weight = linear, device, linear.weight
        self.in_features, self.out_features, self.nbytes = linear.in_features, linear.out_features, linear.nbytes
        self.rows_independent = linear.rows_independent

    def product(self, x: Tensor) -> Tensor:
        return self._linear(x.to(self._device)).to(x.device)


class LinearGroup:
    """n matrices [C_out, C_in], each with an input of its own: [n, M, C_in] → n tensors [M, C_out]."""

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = linears

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        return [linear(part) for linear, part in zip(self._linears, x, strict=True)]


class StackedLinear(LinearGroup):
    """n matrices [n, C_out, C_in] that one call of an op multiplies.

    Args:
        weight: a tensor, or the packed weight that `op` takes in its place.
        op: the function of an implementation: [n, M, C_in] and the weight → [n, M, C_out].
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
    ops: OpTable | None = None,
    dense: Callable[[Tensor], Linear] = DenseLinear,
    keep: Callable[[Tensor], Tensor] | None = None,
) -> Linear:
    """Load one matrix.

    Args:
        name: a matrix [C_out, C_in] of the checkpoint. If the file holds it in 8-bit form, that form is taken as it is
            for "int8", and dequantised once for the others. Otherwise it is quantised on `device`.
        dtype: of a dense weight; an 8-bit form follows the dtype of its input.
        quantization: None, "int8" (mm8) or "w8a8" (but for `WIDE_INPUT_MATRIX`).
        scale: multiplies the weight; exact where it is a power of two that neither overflows nor underflows `dtype`.
        ops: implementations for 8-bit weights; their definitions where None.
        dense: makes the matrix of a dense weight [C_out, C_in].
        keep: moves a weight that is about to become a matrix: see `LayerStream.keep`. None leaves it on `device`.

    Raises:
        ConfigurationError: an unknown `quantization`.
        CheckpointError: the matrix can't be quantised.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigurationError(f"got {quantization!r}, expected null, 'int8' or 'w8a8'", setting="quantization")
    served = (ops or REFERENCE_OPS).implementations
    if quantization == "int8":
        return Mm8Linear(checkpoint.as_mm8(name, device).scaled(scale), device, served[MM8.name], keep)
    if quantization == "w8a8":
        q, weight_scale = _quantize(checkpoint, name, device, scale)
        if not name.endswith(WIDE_INPUT_MATRIX):
            return W8A8Linear(q, weight_scale, served[W8A8.name], keep)
        if q.device.type == "cpu":
            return W8A8Linear(q, weight_scale, served[W8A16.name], keep)
        weight = (q * weight_scale[:, None]).to(dtype)
    else:
        weight = load_dense(checkpoint, name, dtype, device, scale)
    return dense(weight if keep is None else keep(weight))


def load_dense(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, device: torch.device | str, scale: float = 1.0
) -> Tensor:
    """A matrix [C_out, C_in] as a tensor: times `scale`, then in `dtype`, on `device`, contiguous."""
    return _scaled(checkpoint, name, scale).to(device, dtype).contiguous()


def stack_w8a8(checkpoint: Checkpoint, names: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantise n matrices of one shape: q [n, C_out, C_in] int8 and scale [n, C_out] float32.

    Raises:
        CheckpointError: one of them can't be quantised.
    """
    weights = [_quantize(checkpoint, name, device) for name in names]
    q, scale = (torch.stack(parts) for parts in zip(*weights, strict=True))
    return q, scale


def _quantize(
    checkpoint: Checkpoint, name: str, device: torch.device | str, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`quantize_w8a8` of a matrix times `scale`, on `device`."""
    try:
        return quantize_w8a8(_scaled(checkpoint, name, scale).to(device))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {name}: {error}") from error


def _scaled(checkpoint: Checkpoint, name: str, scale: float) -> Tensor:
    weight = checkpoint.tensor(name)
    return weight if scale == 1.0 else weight * scale
