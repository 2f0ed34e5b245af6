"""Dense matrices on a CPU whose weights oneDNN packs once, instead of in every product."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .product import Linear

PACKED_DTYPES = (torch.float32, torch.bfloat16)
_ROWS_HINT = 32
"""Rows of a typical product; any number works."""


class PackedLinear(Linear):
    """A weight [C_out, C_in] that oneDNN has packed. The product is in the weight's dtype, the result in that of x."""

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, None, "none", [], "")
        return y.to(x.dtype)


def can_pack(weight: Tensor) -> bool:
    """Whether this torch packs a weight of this dtype on this device."""
    return weight.device.type == "cpu" and _can_pack(weight.dtype)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operators, which are no public part of torch, are there and multiply rightly."""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight = torch.arange(48, dtype=dtype).view(3, 16)
    x = torch.ones(2, 16, dtype=dtype)
    try:
        return torch.equal(PackedLinear(weight)(x), F.linear(x, weight))
    except (AttributeError, RuntimeError):
        return False
