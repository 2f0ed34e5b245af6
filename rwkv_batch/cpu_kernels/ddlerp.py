"""Data-dependent interpolations; see `ddlerp` in models/rwkv6.py for the definition."""

from __future__ import annotations

import ctypes

from torch import Tensor

from .call import DTYPES, INT, address, pointers, run
from .call import unsupported as unsupported_reason

__all__ = ["ddlerp", "unsupported_reason"]


class Ddlerp(ctypes.Structure):
    """`Ddlerp` of csrc/rows.cpp."""

    _fields_ = (
        *((name, INT) for name in ("count", "num_rows", "width")),
        *pointers("normed", "delta", "mix", "shares"),
    )


def ddlerp(normed: Tensor, delta: Tensor, shares: Tensor, mix: Tensor) -> Tensor:
    """As the definition; float32, rounded once. The interpolations are written over `shares`, which is returned."""
    count, num_rows, width = shares.shape
    dtype = shares.dtype
    arguments = Ddlerp(
        count=count,
        num_rows=num_rows,
        width=width,
        normed=address("normed", normed, (num_rows, width), dtype),
        delta=address("delta", delta, (num_rows, width), dtype),
        mix=address("mix", mix, (count, 1, width), dtype),
        shares=address("shares", shares, (count, num_rows, width), dtype),
    )
    run(f"ddlerp_{DTYPES[dtype]}", arguments)
    return shares
