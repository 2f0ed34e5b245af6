"""RWKV-6's recurrence; see `wkv6` in models/rwkv6.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .launch import unsupported_heads
from .probe import probed
from .recurrence import NUM_WARPS
from .specialization import Specialization
from .wkv56 import specialization, wkv56, wkv56_kernel

__all__ = ["NUM_WARPS", "specializations", "unsupported_reason", "wkv6", "wkv56_kernel"]


def wkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor, head: Any, state: Tensor, rows: Any) -> Tensor:
    """Advances the RWKV-6 state of each row through its tokens; returns its output. The definition has the equation.

    Shapes, dtypes, padding, errors, numerics and graph safety are those of `wkv5` beside it, with

    Args:
        g: [M, A], never None.
        w: [M, A], dtype of `r`: what the low-rank pair adds to d = `head.decay` in the decay exp(-exp(d + w)).
    """
    return wkv56(r, k, v, g, w, head, state, rows)


unsupported_reason = probed("wkv6", unsupported_heads)


def specializations() -> list[Specialization]:
    """The compilations for float32 and float16 states."""
    return [
        specialization("wkv6", "fp32"),
        specialization("wkv6", "fp16", is_probe=True),
        specialization("wkv6", "fp32", vectors="fp32"),
        specialization("wkv6", "fp16", vectors="fp16"),
    ]
