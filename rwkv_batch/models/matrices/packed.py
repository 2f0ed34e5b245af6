"""Dense matrices that oneDNN packs for a CPU when they are loaded, instead of in every product."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .product import Linear

PACKED_DTYPES = (torch.float32, torch.bfloat16)
_ROWS_HINT = 32
"""The number of rows that oneDNN chooses the layout for. Products of any number of rows are correct."""


class PackedLinear(Linear):
    """A weight [C_out, C_in] packed by oneDNN. The product is in the weight's dtype, the result in the dtype of x."""

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = weight.nbytes
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)

    def product(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, None, "none", [], "")
        return y.to(x.dtype)


def can_pack(weight: Tensor) -> bool:
    """True where this build of torch packs a weight of this dtype and device."""
    return weight.device.type == "cpu" and _can_pack(weight.dtype)


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """True where torch has oneDNN's operators, which are not public, and a small product of them is correct."""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight = torch.arange(48, dtype=dtype).view(3, 16)
    x = torch.ones(2, 16, dtype=dtype)
    try:
        return torch.equal(PackedLinear(weight)(x), F.linear(x, weight))
    except (AttributeError, RuntimeError):
        return False
