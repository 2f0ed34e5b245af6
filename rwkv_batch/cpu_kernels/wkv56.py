"""The kernel of `wkv5` and `wkv6`. The decay is a parameter in v5 and depends on the token in v6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import FLOAT, INT, POINTER, address, call, pointers, pool_address, struct

Wkv56 = struct(
    "Wkv56",
    ("num_heads", INT),
    ("size", INT),
    ("slot_stride", INT),
    *pointers("r", "k", "v", "g", "w", "decay", "bonus", "norm_weight", "norm_bias"),
    ("eps", FLOAT),
    ("state", POINTER),
    ("out", POINTER),
)


def wkv56(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor | None, w: Tensor | None, head: Any, state: Tensor, rows: Any
) -> Tensor:
    """The recurrence of v6, or of v5 where `w` is None."""
    num_heads, size = head.bonus.shape
    width, dtype = num_heads * size, r.dtype
    shape = (rows.num_tokens, width)
    out = torch.empty_like(r)
    state_address, slot_stride = pool_address("state", state, (num_heads, size, size), torch.float32)
    call(
        "wkv56",
        dtype,
        Wkv56,
        rows,
        num_heads=num_heads,
        size=size,
        slot_stride=slot_stride,
        r=address("r", r, shape, dtype),
        k=address("k", k, shape, dtype),
        v=address("v", v, shape, dtype),
        g=address("g", g, shape, dtype),
        w=address("w", w, shape, dtype),
        decay=address("head.decay", head.decay, (num_heads, size), torch.float32),
        bonus=address("head.bonus", head.bonus, (num_heads, size), torch.float32),
        norm_weight=address("head.norm.weight", head.norm.weight, (width,), torch.float32),
        norm_bias=address("head.norm.bias", head.norm.bias, (width,), torch.float32),
        eps=head.eps,
        state=state_address,
        out=out.data_ptr(),
    )
    return out
