"""RWKV-5's recurrence; see `wkv5` in models/rwkv5.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .launch import unsupported_heads
from .probe import probed
from .recurrence import NUM_WARPS
from .specialization import Specialization
from .wkv56 import specialization, wkv56, wkv56_kernel

__all__ = ["NUM_WARPS", "specializations", "unsupported_reason", "wkv5", "wkv56_kernel"]


def wkv5(r: Tensor, k: Tensor, v: Tensor, g: Tensor | None, head: Any, state: Tensor, rows: Any) -> Tensor:
    """Advances the RWKV-5 state of each row through its tokens; returns its output. The definition has the equation.

    Args:
        r, k, v: [M, A], A = H * N, float32, bfloat16 or float16, contiguous.
        g: [M, A], same dtype, gate before its SiLU, or None (5.0).
        head: `Head5`, float32.
        state: [P, H, K, V], float32 or float16, slots contiguous. **Updated in place**, only in the slots of `rows`.
        rows: `Rows` on the same device. Slot -1 is padding: the output is 0, no state is touched.

    Returns:
        [M, A], dtype of `r`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: products and state in float32; a float16 state is rounded stochastically after every token, by the token's
        position in its sequence. A row's bits do not depend on how its tokens are cut into calls, on its slot, or on
        the other rows. Error against float64, relative to the largest number, in the interpreter: 5e-7.
    Graph-safe: no allocation besides the output, no host sync.
    """
    return wkv56(r, k, v, g, None, head, state, rows)


unsupported_reason = probed("wkv5", unsupported_heads)


def specializations() -> list[Specialization]:
    """The compilations for 5.0 (without g) and later versions, with a float32 and a float16 state."""
    return [
        specialization("wkv5", "fp32", "w"),
        specialization("wkv5", "fp32", "w", "g"),
        specialization("wkv5", "fp16", "w", is_probe=True),
        specialization("wkv5", "fp16", "w", "g"),
        specialization("wkv5", "fp32", "w", vectors="fp32"),
        specialization("wkv5", "fp16", "w", vectors="fp16"),
    ]
