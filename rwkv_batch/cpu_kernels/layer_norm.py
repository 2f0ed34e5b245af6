"""Layer norm of each row; see `layer_norm` in models/blocks.py for the definition."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from .call import DTYPES, INT, address, pointers, run
from .call import unsupported as unsupported_reason

__all__ = ["layer_norm", "unsupported_reason"]


class LayerNorm(ctypes.Structure):
    """`LayerNorm` of csrc/rows.cpp."""

    _fields_ = (("num_rows", INT), ("width", INT), *pointers("x", "weight", "bias", "y"))


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """As the definition; statistics in float32."""
    num_rows, width = x.shape
    dtype, x = x.dtype, x.contiguous()
    y = torch.empty_like(x)
    arguments = LayerNorm(
        num_rows=num_rows,
        width=width,
        x=x.data_ptr(),
        weight=address("norm.weight", norm.weight, (width,), dtype),
        bias=address("norm.bias", norm.bias, (width,), dtype),
        y=y.data_ptr(),
    )
    run(f"layer_norm_{DTYPES[dtype]}", arguments)
    return y
