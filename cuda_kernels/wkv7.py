"""RWKV-7's recurrence, everything per head fused; see `wkv7` in models/rwkv7.py for the definition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernel_support.recurrences import Arguments, check_ring, wkv7_parameters
from ..kernel_support.tensor_checks import check_all
from .build import Specialization
from .heads import check_heads, launch_heads, specializations_of
from .launch import Kernel, built, unsupported_heads

__all__ = ["defers_writes", "specializations", "unsupported_reason", "wkv7"]

_INPUTS = ("r", "w", "k", "v", "a", "g")
_RESIDUAL = ("v_first", "v_gate")
_VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "norm_weight", "norm_bias")
_KERNEL = Kernel(
    "wkv7",
    pointers=(
        *(*_INPUTS, *_RESIDUAL, *_VECTORS, "state", "ring", "out"),
        *("slot", "start", "position", "deferred"),
    ),
    int64s=("slot_stride", "ring_stride"),
    int32s=("num_heads",),
    floats=("eps",),
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
    ring: Tensor | None = None,
) -> Tensor:
    """Advances the RWKV-7 state of each row through its tokens; returns its output. The definition has the equation.

    Args:
        r, k, v, g: [M, A], A = H * N, float32, bfloat16 or float16, contiguous.
        w, a: [M, A], same dtype, low-rank outputs, before bias and nonlinearity.
        v_first, v_gate: [M, A], same dtype: layer 0's v, and the value residual's low-rank output. None in layer 0.
        head: `Head7`, float32.
        state: [P, H, K, V], float32 or float16, slots contiguous. **Updated in place**, only in the slots of `rows`.
        rows: `Rows` on the same device. Slot -1 is padding: the output is 0, no state is touched.
        ring: [P, n - 1, H, 5, N], n from 2 to 4, float32, slots contiguous: updates that the states lack, see `Rwkv7`.
            **Updated in place**, as `rows.deferred` says. None: the states lack none, and each row's is written.

    Returns:
        [M, A], dtype of `r`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: products and state in float32; a float16 state is rounded stochastically after every token, by the token's
        position in its sequence. A row's bits do not depend on how its tokens are cut into calls, on its slot, on a
        ring, or on the other rows. Error against float64, relative to the largest number, emulated on a CPU: 2e-7.
    Graph-safe after its first launch: no allocation besides the output, no host sync.
    """
    num_heads, size = head.r_k.shape
    width, dtype, device = num_heads * size, r.dtype, r.device
    has_residual = v_first is not None and v_gate is not None and head.v0 is not None
    residual = (v_first, v_gate) if has_residual else (None, None)
    inputs: Arguments = dict(zip((*_INPUTS, *_RESIDUAL), (r, w, k, v, a, g, *residual), strict=True))
    check_all(inputs, (rows.num_tokens, width), dtype, device)
    parameters = wkv7_parameters(head, has_residual, device)
    check_heads(state, num_heads, size, device)
    ring_stride = 0 if ring is None else check_ring(ring, num_heads, size, device)
    deferral = {"ring": ring, "deferred": None if ring is None else rows.deferred, "ring_stride": ring_stride}
    return launch_heads(_KERNEL, inputs, parameters | deferral, head.eps, state, rows)


defers_writes = True
unsupported_reason = built("wkv7", unsupported_heads)


def specializations() -> list[Specialization]:
    return specializations_of("wkv7")
