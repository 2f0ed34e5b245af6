"""The kernel of `wkv5` and `wkv6`. The decay is a parameter in v5 and depends on the token in v6."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernel_support.recurrences import wkv56_parameters
from ..kernel_support.tensor_checks import check_all
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
    """The recurrence of v6, or of v5 where `w` is None; arguments as in wkv6.py."""
    num_heads, size = head.bonus.shape
    inputs = {"r": r, "k": k, "v": v, "g": g, "w": w}
    check_all(inputs, (rows.num_tokens, num_heads * size), r.dtype, r.device)
    parameters = wkv56_parameters(head, r.device)
    check_heads(state, num_heads, size, r.device)
    return launch_heads(_KERNEL, inputs, parameters, head.eps, state, rows)
