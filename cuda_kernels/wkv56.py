"""What `wkv5` and `wkv6` share: one kernel, whose decay is a parameter in v5 and depends on the token in v6."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check
from .heads import check_heads, launch_heads
from .launch import Kernel

_KERNEL = Kernel(
    "wkv56",
    pointers=(
        *("r", "k", "v", "g", "w", "decay", "bonus", "norm_weight", "norm_bias"),
        *("state", "out", "slot", "start", "position"),
    ),
    int64s=("slot_stride",),
    int32s=("num_heads",),
    floats=("eps",),
)


def wkv56(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor | None, w: Tensor | None, head: Any, state: Tensor, rows: Any
) -> Tensor:
    """The recurrence of v6, or of v5 where `w` is None."""
    num_heads, size = head.bonus.shape
    width, dtype, device = num_heads * size, r.dtype, r.device
    inputs = {"r": r, "k": k, "v": v, "g": g, "w": w}
    for name, x in inputs.items():
        if x is not None:
            check(name, x, (rows.num_tokens, width), dtype, device)
    for name, x in (("head.decay", head.decay), ("head.bonus", head.bonus)):
        check(name, x, (num_heads, size), torch.float32, device)
    for name, x in (("head.norm.weight", head.norm.weight), ("head.norm.bias", head.norm.bias)):
        check(name, x, (width,), torch.float32, device)
    slot_stride = check_heads(state, num_heads, size, device)
    out = torch.empty_like(r)
    if rows.num_tokens:
        launch_heads(
            _KERNEL,
            state,
            rows,
            slot_stride,
            **inputs,
            decay=head.decay,
            bonus=head.bonus,
            norm_weight=head.norm.weight,
            norm_bias=head.norm.bias,
            out=out,
            eps=head.eps,
        )
    return out
