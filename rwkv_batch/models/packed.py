"""Dense matrices in the order that oneDNN multiplies fastest, laid out once instead of in every product."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .linear import DenseLinear
from .product import Linear

PACKED_DTYPES = (torch.float32, torch.bfloat16)
_ROWS_HINT = 32
"""Rows of a typical product; any number works."""


class PackedLinear(Linear):
    """A weight [C_out, C_in] in oneDNN's own layout. The product and its result are in the weight's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self.dtype = weight.dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self._packed, None, "none", [], "")
        return y.to(x.dtype)


def pack(linear: Linear) -> Linear:
    """The same matrix in the fastest form that this torch has for it on a CPU."""
    if isinstance(linear, DenseLinear) and linear.weight.device.type == "cpu" and _can_pack(linear.weight.dtype):
        return PackedLinear(linear.weight)
    return linear


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether these operators, which torch keeps for itself, are there and do what they should."""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight = torch.arange(48, dtype=dtype).view(3, 16)
    x = torch.ones(2, 16, dtype=dtype)
    try:
        return torch.equal(PackedLinear(weight)(x), DenseLinear(weight)(x))
    except (AttributeError, RuntimeError):
        return False
