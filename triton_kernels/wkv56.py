"""The kernel of `wkv5` and `wkv6`. The decay is a parameter in v5 and depends on the token in v6."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.recurrences import wkv56_parameters
from ..kernel_support.tensor_checks import check_all, check_pool
from .launch import STATE_DTYPES
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


@triton.jit
def _load(p_r, p_k, p_v, p_g, p_w, offset, channel):  # type: ignore[no-untyped-def]
    return (
        load_vector(p_r, offset, channel),
        load_vector(p_k, offset, channel),
        load_vector(p_v, offset, channel),
        load_vector(p_g, offset, channel),
        load_vector(p_w, offset, channel),
    )


@triton.jit
def wkv56_kernel(  # type: ignore[no-untyped-def]
    p_r,
    p_k,
    p_v,
    p_g,
    p_w,
    p_decay,
    p_bonus,
    p_norm_weight,
    p_norm_bias,
    p_state,
    p_slot,
    p_start,
    p_position,
    p_out,
    eps,
    SLOT_STRIDE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
):
    """Grid [B * H]: a program takes one head of one row through the row's tokens, its state in registers.

    `p_g` is None in 5.0, `p_w` in v5, `p_position` where the state is float32.
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
    decay = tl.load(p_decay + channel)
    bonus = tl.load(p_bonus + channel)
    norm_weight = tl.load(p_norm_weight + channel)
    norm_bias = tl.load(p_norm_bias + channel)
    if p_position is not None:
        position = tl.load(p_position + i_row)
    offset = start.to(tl.int64) * (H * N)
    following = _load(p_r, p_k, p_v, p_g, p_w, offset, channel)

    for t in range(end - start):
        r, k, v, g, w = following
        o_next = offset + tl.where(t + 1 < end - start, H * N, 0)  # after the last token, the last token again
        following = _load(p_r, p_k, p_v, p_g, p_w, o_next, channel)

        y = tl.sum(state * r[:, None], 0) + tl.sum(r * bonus * k, 0) * v
        kept = tl.exp(-tl.exp(decay + w)) if p_w is not None else decay
        state = tl.fma(state, kept[:, None], k[:, None] * v[None, :])
        if p_position is not None:
            state = round_stochastically(state, position + t, i_head, i, i)

        y = head_norm(y, norm_weight, norm_bias, eps, N)
        if p_g is not None:
            y *= g * tl.sigmoid(g)
        tl.store(p_out + offset + channel, y.to(p_out.dtype.element_ty))
        offset += H * N
    tl.store(p_record, state.to(p_state.dtype.element_ty))


def wkv56(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor | None, w: Tensor | None, head: Any, state: Tensor, rows: Any
) -> Tensor:
    """The recurrence of v6, or of v5 where `w` is None; arguments as in wkv6.py."""
    num_heads, size = head.bonus.shape
    inputs = {"r": r, "k": k, "v": v, "g": g, "w": w}
    check_all(inputs, (rows.num_tokens, num_heads * size), r.dtype, r.device)
    parameters = wkv56_parameters(head, r.device)
    check_pool("state", state, (num_heads, size, size), STATE_DTYPES, r.device)
    return launch_heads(wkv56_kernel, inputs, parameters, head.eps, state, rows)


def specialization(
    name: str, state: str, *absent: str, vectors: str = "bf16", is_probe: bool = False
) -> Specialization:
    """The compilation for a model with 12 heads of 64 and 12 layers; prefill and decode have the same.

    Args:
        state, vectors: Triton's names of the dtypes of the state, and of inputs and output.
        absent: inputs that are None.
    """
    constexprs: dict[str, Any] = {"SLOT_STRIDE": 12 * 12 * 64 * 64, "H": 12, "N": 64}
    signature = {
        **pointers(vectors, "r", "k", "v", "g", "w", "out"),
        **pointers("fp32", "decay", "bonus", "norm_weight", "norm_bias"),
        **pointers("i32", "slot", "start", "position"),
        **pointers(state, "state"),
        "eps": "fp32",
    }
    if state == "fp32":
        absent = (*absent, "position")
    for argument in absent:
        del signature[f"p_{argument}"]
        constexprs[f"p_{argument}"] = None
    label = ", ".join((name, vectors, f"state {state}", *(f"no {argument}" for argument in absent)))
    return Specialization(label, wkv56_kernel, signature, constexprs, NUM_WARPS[64], NUM_STAGES, is_probe)
