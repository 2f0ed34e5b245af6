"""RWKV-6's recurrence; see `wkv6` in models/rwkv6.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .call import unsupported_state as unsupported_reason
from .wkv56 import wkv56

__all__ = ["unsupported_reason", "wkv6"]


def wkv6(r: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor, head: Any, state: Tensor, rows: Any) -> Tensor:
    """As the definition; products and state in float32. Slot -1 is padding: its output is 0, and no state changes."""
    return wkv56(r, k, v, g, w, head, state, rows)
