"""Matrices as the model sees them, by how they are stored and in what pieces they are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .mm8_linear import Mm8Linear, mm8
from .product import Activation, Linear, linear

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Quantization = Literal["int8"]


class DenseLinear(Linear):
    """A weight [C_out, C_in] of any float dtype. The product is in that dtype, the result in the dtype of x.

    Args:
        op: the implementation of `linear` that serves.
    """

    def __init__(self, weight: Tensor, op: Callable[..., Tensor] = linear) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self._op = op

    def product(self, x: Tensor) -> Tensor:
        return self(x)

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
    """n dense matrices side by side, [n, C_out, C_in], multiplied in one go."""

    def __init__(self, weight: Tensor, op: Callable[..., Tensor]) -> None:
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
    mm8_op: Callable[..., Tensor] = mm8,
) -> Linear:
    """Load one matrix.

    Args:
        name: a matrix [C_out, C_in] of the checkpoint. If the file holds it in 8-bit form, that form is taken as it is
            for "int8", and dequantised once for None. Otherwise "int8" quantises it on `device`.
        dtype: of a dense weight; the 8-bit form follows the dtype of its input.
        quantization: None or "int8".
        op: the implementation of `linear` for dense weights.
        mm8_op: the implementation of `mm8` for those in 8-bit form.
        scale: multiplies the weight; exact where it is a power of two that neither overflows nor underflows `dtype`.

    Raises:
        ConfigurationError: an unknown `quantization`.
        CheckpointError: the matrix can't be quantised.
    """
    if quantization not in (None, "int8"):
        raise ConfigurationError(f"quantization: got {quantization!r}, expected null or 'int8'")
    if quantization == "int8":
        return Mm8Linear(checkpoint.as_mm8(name, device).scaled(scale), device, mm8_op)
    weight = checkpoint.tensor(name)
    if scale != 1.0:
        weight = weight * scale
    return DenseLinear(weight.to(device, dtype).contiguous(), op)
