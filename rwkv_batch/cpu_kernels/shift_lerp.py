"""Layer norm, token shift and interpolations in one pass; see `shift_lerp` in models/blocks.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import INT, address, call, pointers, pool_address, struct
from .call import unsupported as unsupported_reason

__all__ = ["shift_lerp", "unsupported_reason"]

ShiftLerp = struct(
    "ShiftLerp",
    ("width", INT),
    ("num_tokens", INT),
    ("num_mixes", INT),
    ("slot_stride", INT),
    *pointers("x", "weight", "bias", "mix", "shift", "normed", "delta", "mixed"),
)


def shift_lerp(
    x: Tensor, norm: Any, mix: Tensor, shift: Tensor, rows: Any, keep_parts: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """As the definition; statistics in float32, `normed` and `delta` rounded to the dtype of `x` before use."""
    num_tokens, width = x.shape
    dtype, count = x.dtype, len(mix)
    normed, delta = torch.empty_like(x), torch.empty_like(x)
    mixed = torch.empty(count, num_tokens, width, dtype=dtype, device="cpu")
    shift_address, slot_stride = pool_address("shift", shift, (width,), dtype)
    call(
        "shift_lerp",
        dtype,
        ShiftLerp,
        rows,
        width=width,
        num_tokens=num_tokens,
        num_mixes=count,
        slot_stride=slot_stride,
        x=address("x", x, (rows.num_tokens, width), dtype),
        weight=address("norm.weight", norm.weight, (width,), dtype),
        bias=address("norm.bias", norm.bias, (width,), dtype),
        mix=address("mix", mix, (count, width), dtype),
        shift=shift_address,
        normed=normed.data_ptr(),
        delta=delta.data_ptr(),
        mixed=mixed.data_ptr(),
    )
    return (normed, delta, mixed) if keep_parts else (None, None, mixed)
