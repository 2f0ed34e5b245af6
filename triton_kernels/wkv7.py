"""RWKV-7's recurrence, everything per head fused; see `wkv7` in models/rwkv7.py for the definition."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.recurrences import Arguments, check_ring, wkv7_parameters
from ..kernel_support.tensor_checks import check_all, check_pool
from .launch import STATE_DTYPES, unsupported_heads
from .probe import probed
from .recurrence import (
    NUM_STAGES,
    NUM_WARPS,
    head_norm,
    last_first,
    launch_heads,
    load_vector,
    round_stochastically,
    write_zeros,
)
from .specialization import Specialization, pointers

__all__ = ["NUM_WARPS", "defers_writes", "specializations", "unsupported_reason", "wkv7", "wkv7_kernel"]

_INPUTS = ("r", "w", "k", "v", "a", "g")
_RESIDUAL = ("v_first", "v_gate")
_VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "norm_weight", "norm_bias")


@triton.jit
def _load(p_r, p_w, p_k, p_v, p_a, p_g, p_v_first, p_v_gate, offset, channel):  # type: ignore[no-untyped-def]
    return (
        load_vector(p_r, offset, channel),
        load_vector(p_w, offset, channel),
        load_vector(p_k, offset, channel),
        load_vector(p_v, offset, channel),
        load_vector(p_a, offset, channel),
        load_vector(p_g, offset, channel),
        load_vector(p_v_first, offset, channel),
        load_vector(p_v_gate, offset, channel),
    )


@triton.jit
def _apply(state, decay, removal, erased, key, value):  # type: ignore[no-untyped-def]
    """The state [K, V] after an update, five vectors [N]."""
    removed = tl.sum(state * removal[:, None], 0)  # [V]
    added = tl.fma(erased[:, None], removed[None, :], key[:, None] * value[None, :])
    return tl.fma(state, decay[:, None], added)


@triton.jit
def wkv7_kernel(  # type: ignore[no-untyped-def]
    p_r,
    p_w,
    p_k,
    p_v,
    p_a,
    p_g,
    p_v_first,
    p_v_gate,
    p_w0,
    p_a0,
    p_v0,
    p_k_k,
    p_k_a,
    p_r_k,
    p_norm_weight,
    p_norm_bias,
    p_state,
    p_slot,
    p_start,
    p_position,
    p_out,
    eps,
    p_ring,
    p_deferred,
    SLOT_STRIDE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    RING_STRIDE: tl.constexpr,
):
    """Grid [B * H]: a program takes one head of one row through the row's tokens, its state in registers.

    `p_v_first`, `p_v_gate` and `p_v0` are None in layer 0, `p_position` where the state is float32. `p_ring` is None
    where states are written at every token; otherwise its updates are applied to the state first, in their order.
    """
    i_program = last_first()
    i_row = i_program // H
    i_head = i_program % H
    slot = tl.load(p_slot + i_row)
    start = tl.load(p_start + i_row)
    end = tl.load(p_start + i_row + 1)
    i = tl.arange(0, N)
    channel = i_head * N + i
    if slot < 0:
        write_zeros(p_out, start, end, channel, H * N)
        return

    p_record = p_state + slot.to(tl.int64) * SLOT_STRIDE + channel[:, None] * N + i[None, :]  # [K, V]
    state = tl.load(p_record).to(tl.float32)
    w0 = tl.load(p_w0 + channel)
    a0 = tl.load(p_a0 + channel)
    v0 = load_vector(p_v0, 0, channel)
    k_k = tl.load(p_k_k + channel)
    k_a = tl.load(p_k_a + channel)
    r_k = tl.load(p_r_k + channel)
    norm_weight = tl.load(p_norm_weight + channel)
    norm_bias = tl.load(p_norm_bias + channel)
    if p_position is not None:
        position = tl.load(p_position + i_row)
    deferred = -1
    if p_ring is not None:
        deferred = tl.load(p_deferred + i_row)
        num_pending = tl.where(deferred < 0, -1 - deferred, deferred)
        p_update = p_ring + slot.to(tl.int64) * RING_STRIDE + i_head * (5 * N) + i
        for j in range(num_pending):
            p = p_update + j * (H * 5 * N)
            removal, erased, key = tl.load(p + N), tl.load(p + 2 * N), tl.load(p + 3 * N)
            state = _apply(state, tl.load(p), removal, erased, key, tl.load(p + 4 * N))
            if p_position is not None:
                state = round_stochastically(state, position - num_pending + j, i_head, i, i)
    offset = start.to(tl.int64) * (H * N)
    following = _load(p_r, p_w, p_k, p_v, p_a, p_g, p_v_first, p_v_gate, offset, channel)

    for t in range(end - start):
        r, w, k, v, a, g, v_first, v_gate = following
        o_next = offset + tl.where(t + 1 < end - start, H * N, 0)  # after the last token, the last token again
        following = _load(p_r, p_w, p_k, p_v, p_a, p_g, p_v_first, p_v_gate, o_next, channel)

        decay = tl.exp(-0.6065306597126334 * tl.sigmoid(w0 + w))
        rate = tl.sigmoid(a0 + a)
        if p_v_gate is not None:
            v += (v_first - v) * tl.sigmoid(v0 + v_gate)
        removal = k * k_k
        removal *= 1.0 / tl.maximum(tl.sqrt(tl.sum(removal * removal, 0)), 1e-12)
        k *= 1.0 + (rate - 1.0) * k_a

        erased = removal * -rate
        state = _apply(state, decay, removal, erased, k, v)
        if p_ring is not None and deferred >= 0:  # the row has one token
            p = p_update + deferred * (H * 5 * N)
            tl.store(p, decay)
            tl.store(p + N, removal)
            tl.store(p + 2 * N, erased)
            tl.store(p + 3 * N, k)
            tl.store(p + 4 * N, v)
        y = head_norm(tl.sum(state * r[:, None], 0), norm_weight, norm_bias, eps, N)
        if p_position is not None:
            state = round_stochastically(state, position + t, i_head, i, i)

        y = (y + tl.sum(r * k * r_k, 0) * v) * g
        tl.store(p_out + offset + channel, y.to(p_out.dtype.element_ty))
        offset += H * N
    if deferred < 0:
        tl.store(p_record, state.to(p_state.dtype.element_ty))


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
        ring, or on the other rows. Error against float64, relative to the largest number, in the interpreter: 2e-7.
    Graph-safe: no allocation besides the output, no host sync.
    """
    num_heads, size = head.r_k.shape
    width, dtype, device = num_heads * size, r.dtype, r.device
    has_residual = v_first is not None and v_gate is not None and head.v0 is not None
    residual = (v_first, v_gate) if has_residual else (None, None)
    inputs: Arguments = dict(zip((*_INPUTS, *_RESIDUAL), (r, w, k, v, a, g, *residual), strict=True))
    check_all(inputs, (rows.num_tokens, width), dtype, device)
    parameters = wkv7_parameters(head, has_residual, device)
    check_pool("state", state, (num_heads, size, size), STATE_DTYPES, device)
    stride = 0 if ring is None else check_ring(ring, num_heads, size, device)
    deferral = ring, None if ring is None else rows.deferred
    return launch_heads(wkv7_kernel, inputs, parameters, head.eps, state, rows, deferral, {"RING_STRIDE": stride})


defers_writes = True
unsupported_reason = probed("wkv7", unsupported_heads)


def specializations() -> list[Specialization]:
    """The compilations for models with 12 heads of 64 and 12 layers; prefill and decode have the same."""

    def one(
        state: str, residual: bool, vectors: str = "bf16", is_probe: bool = False, ring: bool = False
    ) -> Specialization:
        ring_stride = 12 * 12 * 5 * 64 if ring else 0
        constexprs: dict[str, Any] = {"SLOT_STRIDE": 12 * 12 * 64 * 64, "H": 12, "N": 64, "RING_STRIDE": ring_stride}
        signature = {
            **pointers(vectors, *_INPUTS, *_RESIDUAL, "out"),
            **pointers("fp32", *_VECTORS),
            **pointers("i32", "slot", "start", "position", "deferred"),
            **pointers("fp32", "ring"),
            **pointers(state, "state"),
            "eps": "fp32",
        }
        absent = [] if residual else [f"p_{name}" for name in (*_RESIDUAL, "v0")]
        if state == "fp32":
            absent.append("p_position")
        if not ring:
            absent += ["p_ring", "p_deferred"]
        for name in absent:
            del signature[name]
            constexprs[name] = None
        label = f"wkv7, {vectors}, state {state}, {'with' if residual else 'without'} value residual"
        label += ", deferred" if ring else ""
        return Specialization(label, wkv7_kernel, signature, constexprs, NUM_WARPS[64], NUM_STAGES, is_probe)

    return [
        one("fp32", residual=False),
        one("fp32", residual=True),
        one("fp16", residual=False),
        one("fp16", residual=True, is_probe=True),
        one("fp32", residual=True, vectors="fp32"),
        one("fp16", residual=True, vectors="fp16"),
        one("fp32", residual=True, ring=True),
        one("fp16", residual=True, ring=True),
    ]
