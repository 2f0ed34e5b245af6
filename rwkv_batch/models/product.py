"""What a matrix is to the model: something that rows are multiplied with, and what may follow in the same breath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import OpSpec

Activation = Literal["squared_relu", "sigmoid", "tanh"]


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^{-x}). Unlike torch's own, each element's bits do not depend on its place in the tensor."""
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
    """What follows a product y, which may be overwritten: act(y) * gate, added to `out` in place where it is given."""
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
        fixed_tiles: a row's bits must not depend on M. The definition leaves that to `FixedRowsLinear`.

    Returns:
        [M, C_out] or [n, M, C_out].
    """
    y = F.linear(x, weight) if weight.dim() == 2 else torch.bmm(x, weight.transpose(1, 2))
    return finish(y, activation, gate, out, dtype)


LINEAR = OpSpec("linear", linear, optional=True)


class Linear(ABC):
    """A weight [C_out, C_in], however it is stored.

    Called with x [M, C_in], it gives `finish(x W^T, ...)`, [M, C_out] in the dtype of x unless another is asked for.
    """

    in_features: int
    out_features: int
    nbytes: int
    """Bytes the weight takes where it is kept."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """x [M, C_in] → x W^T [M, C_out], in the dtype of x."""

    def write(self, x: Tensor, y: Tensor) -> None:
        """The product, written to y [M, C_out] float32: no new tensor of that size where kernels can do without."""
        y.copy_(self(x, dtype=torch.float32))

    def relocate(self, move: Callable[[Tensor], Tensor]) -> None:
        """Keep the matrix itself where `move` puts it, as long as it is a plain tensor."""
        raise NotImplementedError(f"a {type(self).__name__} stays where it is")

    def __call__(
        self,
        x: Tensor,
        activation: Activation | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return finish(self.product(x), activation, gate, out, dtype)
