"""RWKV-6's recurrence; see `wkv6` in models/rwkv6.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .build import Specialization
from .heads import specializations_of
from .launch import built, unsupported_heads
from .wkv56 import wkv56

__all__ = ["specializations", "unsupported_reason", "wkv6"]


def wkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor, head: Any, state: Tensor, rows: Any) -> Tensor:
    """Advances the RWKV-6 state of each row through its tokens; returns its output. The definition has the equation.

    Shapes, dtypes, padding, errors, numerics and graph safety are those of `wkv5` beside it, with

    Args:
        g: [M, A], never None.
        w: [M, A], dtype of `r`: what the low-rank pair adds to d = `head.decay` in the decay exp(-exp(d + w)).
    """
    return wkv56(r, k, v, g, w, head, state, rows)


unsupported_reason = built("wkv6", unsupported_heads)


def specializations() -> list[Specialization]:
    """The same kernel as v5's."""
    return specializations_of("wkv56")
