"""RWKV-5's recurrence; see `wkv5` in models/rwkv5.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .build import Specialization
from .heads import specializations_of
from .launch import built, unsupported_heads
from .wkv56 import wkv56

__all__ = ["specializations", "unsupported_reason", "wkv5"]


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
        the other rows. Error against float64, relative to the largest number, emulated on a CPU: 2e-7.
    Graph-safe after its first launch: no allocation besides the output, no host sync.
    """
    return wkv56(r, k, v, g, None, head, state, rows)


unsupported_reason = built("wkv5", unsupported_heads)


def specializations() -> list[Specialization]:
    return specializations_of("wkv56")
