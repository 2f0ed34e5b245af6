"""Products of int8 weights with inputs of 16 bits; see `w8a16` in models/matrices/w8a8_linear.py for the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import unsupported as unsupported_reason
from .products import Epilogue, PackedInt8, multiply_integers, pack_int8

__all__ = ["pack", "unsupported_reason", "w8a16", "writes_into"]

writes_into = True


def pack(q: Tensor) -> PackedInt8:
    """Packs an int8 weight [C_out, C_in] or [n, C_out, C_in] for `w8a16`."""
    return pack_int8(q, 2)


def w8a16(
    x: Tensor,
    q: PackedInt8,
    scale: Tensor,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """As the definition, with a weight from `pack`. Sums are exact; the epilogue is float32, rounded once."""
    levels = min(2**15 - 1, (2**31 - 1) // (127 * q.shape[-1]))
    return multiply_integers("w8a16", levels, x, q, scale, Epilogue(activation, gate, out, dtype, into))
