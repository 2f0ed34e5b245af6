"""The contract of a matrix, and the op `linear`: a product with rows and its epilogue (activation, gate, sum)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import Implementation, OpSpec

Activation = Literal["squared_relu", "sigmoid", "tanh"]


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^{-x}). Unlike in torch.sigmoid, an element's bits do not depend on its place in the tensor."""
    return torch.exp(-x).add_(1).reciprocal_()


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, in place."""
    return F.relu(x, inplace=True).square_()


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "squared_relu": squared_relu,
    "sigmoid": sigmoid,
    "tanh": torch.tanh,
}


def finish(
    y: Tensor,
    activation: Activation | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The epilogue of a product y: act(y) * gate, or that added to `out`.

    Args:
        y: [M, C_out]; may be overwritten.
        gate, out: as in `linear`.
        dtype: of the result; that of y where None. Without effect beside `out`.
    """
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if gate is not None:
        y = y * gate
    if out is not None:
        return out.add_(y)
    return y if dtype is None else y.to(dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    activation: Activation | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    fixed_tiles: bool = False,
) -> Tensor:
    """act(x W^T) * gate, or that added to `out`.

    Args:
        x: [M, C_in], or [n, M, C_in] for n products of one shape.
        weight: [C_out, C_in] or [n, C_out, C_in], dtype of `x`.
        gate: [M, C_out], dtype of `x`; multiplies the activated product.
        out: [M, C_out], dtype of `x`. **Updated in place**: the result is added to it; it is returned.
        dtype: of the result; that of `x` where None.
        fixed_tiles: a kernel computes a row with the same bits for every M. The definition cannot: see
            `FixedRowsLinear`.

    Returns:
        [M, C_out] or [n, M, C_out].
    """
    y = F.linear(x, weight) if weight.dim() == 2 else torch.bmm(x, weight.transpose(1, 2))
    return finish(y, activation, gate, out, dtype)


LINEAR = OpSpec("linear", linear, optional=True)
LINEAR_DEFINITION = Implementation(linear)


class Linear(ABC):
    """A weight [C_out, C_in], in whatever format it is stored.

    Called with x [M, C_in], a `Linear` returns `finish(x W^T, ...)`: [M, C_out], in the dtype of x unless `dtype` names
    another one.
    """

    in_features: int
    out_features: int
    nbytes: int
    """Bytes that the weight takes where it is kept."""
    weight: Any
    """The weight as its op takes it: a tensor, or the packed weight of a kernel."""
    rows_independent: bool = False
    """The bits of a row's product do not depend on the number of rows."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x [M, C_in] → x W^T [M, C_out], in the dtype of x."""

    def write(self, x: Tensor, y: Tensor) -> None:
        """Write the product to y [M, C_out] float32, without a temporary of that size where the op can write there."""
        y.copy_(self(x, dtype=torch.float32))

    def __call__(
        self,
        x: Tensor,
        activation: Activation | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return finish(self.product(x), activation, gate, out, dtype)


class OpLinear(Linear):
    """A weight that one op multiplies: `op(x, weight, *parameters)`.

    An op that computes the epilogue too takes `activation, gate, out, dtype` after the parameters.

    Args:
        op: what serves the op.
        weight: as the op takes it: a tensor, or a packed weight with `nbytes`.
        shape: [C_out, C_in].
        parameters: the tensors that the op takes after the weight, such as scales.
    """

    always_has_epilogue: ClassVar[bool] = False
    """Every implementation of the op computes the epilogue."""

    def __init__(self, op: Implementation, weight: Any, shape: Sequence[int], *parameters: Tensor) -> None:
        self.out_features, self.in_features = shape
        self.weight = weight
        self.nbytes = sum(part.nbytes for part in (weight, *parameters))
        self.rows_independent = op.rows_independent
        self._op, self._parameters = op, parameters
        self._has_epilogue = self.always_has_epilogue or op.has_epilogue

    def product(self, x: Tensor) -> Tensor:
        y: Tensor = self._op.function(x, self.weight, *self._parameters)
        return y

    def write(self, x: Tensor, y: Tensor) -> None:
        if self._op.writes_into:
            self._op.function(x, self.weight, *self._parameters, into=y)
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
        if not self._has_epilogue:
            return super().__call__(x, activation, gate, out, dtype)
        y: Tensor = self._op.function(x, self.weight, *self._parameters, activation, gate, out, dtype)
        return y
