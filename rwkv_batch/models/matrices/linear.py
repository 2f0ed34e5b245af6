"""Dense matrices, groups of matrices, and two wrappers of a matrix: for batch invariance, and for another device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import Implementation
from .product import LINEAR, LINEAR_DEFINITION, Activation, Linear, OpLinear
from .weight_format import MatrixReader, WeightFormat


class DenseLinear(OpLinear):
    """A weight [C_out, C_in] of any float dtype. The product is in that dtype, the result in the dtype of x.

    Args:
        weight: as `op` takes it: a tensor, or a packed weight with `shape`, `dtype` and `nbytes`.
        op: what serves `linear`.
    """

    always_has_epilogue = True

    def __init__(self, weight: Any, op: Implementation = LINEAR_DEFINITION) -> None:
        super().__init__(op, weight, weight.shape)

    def product(self, x: Tensor) -> Tensor:
        return self(x)

    def write(self, x: Tensor, y: Tensor) -> None:
        super().write(x.to(self.weight.dtype), y)

    def __call__(
        self,
        x: Tensor,
        activation: Activation | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return super().__call__(x.to(self.weight.dtype), activation, gate, out, dtype or x.dtype)


class DenseFormat(WeightFormat):
    """Matrices in the dtype of the placement."""

    def bytes_per_weight(self, name: str, dtype: torch.dtype, device: torch.device) -> int:
        return dtype.itemsize

    def load(self, reader: MatrixReader, name: str, scale: float = 1.0) -> Linear:
        return reader.make_dense(reader.kept(reader.dense(name, scale)))

    def stack(self, reader: MatrixReader, names: Sequence[str]) -> StackedLinear | None:
        op = reader.ops.implementations[LINEAR.name]
        if op.function is LINEAR.definition:
            return None
        weight = op.packed(reader.kept(torch.stack([reader.dense(name) for name in names])))
        return StackedLinear(weight, op.function, weight.nbytes, len(names))


FORMAT = DenseFormat()


class FixedRowsLinear(Linear):
    """A batch-invariant matrix: multiplies blocks of `ROWS` rows, the last of them padded with zeros.

    The order in which a library sums a product depends on the product's shape. Here all products have one shape, so
    that the bits of a row do not depend on the number of rows.
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
    """A matrix on another device than its inputs: inputs are copied there, results are copied back.

    Args:
        linear: the matrix.
        device: of the matrix.
    """

    def __init__(self, linear: Linear, device: torch.device) -> None:
        self._linear, self._device, self.weight = linear, device, linear.weight
        self.in_features, self.out_features, self.nbytes = linear.in_features, linear.out_features, linear.nbytes
        self.rows_independent = linear.rows_independent

    def product(self, x: Tensor) -> Tensor:
        return self._linear(x.to(self._device)).to(x.device)


class LinearGroup:
    """n matrices [C_out, C_in], matrix i for input i: [n, M, C_in] → n tensors [M, C_out].

    Attributes:
        weight: the n matrices as an op takes them together: a tensor [n, C_out, C_in], or a packed weight; None where
            each is multiplied alone.
    """

    weight: Any = None

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = linears

    def __len__(self) -> int:
        return len(self._linears)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        return [linear(part) for linear, part in zip(self._linears, x, strict=True)]


class StackedLinear(LinearGroup):
    """n matrices [n, C_out, C_in] that one call of an op multiplies.

    Args:
        weight: as `op` takes it: a tensor, or a packed weight.
        op: a function of x [n, M, C_in] and the weight → [n, M, C_out].
        nbytes: bytes of the n matrices, with their scales.
        count: n.
    """

    def __init__(self, weight: Any, op: Callable[..., Tensor], nbytes: int, count: int) -> None:
        self.weight = weight
        self._op = op
        self.nbytes = nbytes
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        return self._op(x, self.weight).unbind()
