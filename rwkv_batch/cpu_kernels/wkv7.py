"""RWKV-7's recurrence, everything per head fused; see `wkv7` in models/rwkv7.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import FLOAT, INT, POINTER, address, call, pointers, pool_address, struct
from .call import unsupported_state as unsupported_reason

__all__ = ["unsupported_reason", "wkv7"]

_INPUTS = ("r", "w", "k", "v", "a", "g", "v_first", "v_gate")
_VECTORS = ("w0", "a0", "v0", "k_k", "k_a")

Wkv7 = struct(
    "Wkv7",
    ("num_heads", INT),
    ("size", INT),
    ("slot_stride", INT),
    *pointers(*_INPUTS, *_VECTORS, "r_k", "norm_weight", "norm_bias"),
    ("eps", FLOAT),
    ("state", POINTER),
    ("out", POINTER),
)


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    g: Tensor,
    v_first: Tensor | None,
    v_gate: Tensor | None,
    head: Any,
    state: Tensor,
    rows: Any,
) -> Tensor:
    """As the definition; products and state in float32. Slot -1 is padding: its output is 0, and no state changes."""
    num_heads, size = head.r_k.shape
    width, dtype = num_heads * size, r.dtype
    shape = (rows.num_tokens, width)
    out = torch.empty_like(r)
    state_address, slot_stride = pool_address("state", state, (num_heads, size, size), torch.float32)
    inputs = dict(zip(_INPUTS, (r, w, k, v, a, g, v_first, v_gate), strict=True))
    call(
        "wkv7",
        dtype,
        Wkv7,
        rows,
        num_heads=num_heads,
        size=size,
        slot_stride=slot_stride,
        **{name: address(name, tensor, shape, dtype) for name, tensor in inputs.items()},
        **{name: address(f"head.{name}", getattr(head, name), (width,), torch.float32) for name in _VECTORS},
        r_k=address("head.r_k", head.r_k, (num_heads, size), torch.float32),
        norm_weight=address("head.norm.weight", head.norm.weight, (width,), torch.float32),
        norm_bias=address("head.norm.bias", head.norm.bias, (width,), torch.float32),
        eps=head.eps,
        state=state_address,
        out=out.data_ptr(),
    )
    return out
