"""RWKV-4's recurrence; see `wkv4` in models/rwkv4.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_pool
from .launch import ceil_div, start_kernel
from .probe import probed
from .recurrence import LAUNCH, NUM_STAGES, last_first, load_vector, write_zeros
from .specialization import Specialization, pointers
from .tiles import TYPES

__all__ = ["BLOCK", "NUM_WARPS", "specializations", "unsupported_reason", "wkv4", "wkv4_kernel"]

BLOCK, NUM_WARPS = 128, 1
"""Channels and warps of a program: four channels a thread, which are 16 bytes of float32."""


@triton.jit
def _load(p_r, p_k, p_v, offset, channel, mask):  # type: ignore[no-untyped-def]
    return (
        load_vector(p_r, offset, channel, mask),
        load_vector(p_k, offset, channel, mask),
        load_vector(p_v, offset, channel, mask),
    )


@triton.jit
def wkv4_kernel(  # type: ignore[no-untyped-def]
    p_r,
    p_k,
    p_v,
    p_decay,
    p_bonus,
    p_aa,
    p_bb,
    p_pp,
    p_slot,
    p_start,
    p_out,
    SLOT_STRIDE: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [B, A / BLOCK]: a program takes a block of channels of one row through the row's tokens."""
    i_row = last_first()
    slot = tl.load(p_slot + i_row)
    start = tl.load(p_start + i_row)
    end = tl.load(p_start + i_row + 1)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < A
    if slot < 0:
        write_zeros(p_out, start, end, channel, A, mask)
        return

    o_record = slot.to(tl.int64) * SLOT_STRIDE
    a = load_vector(p_aa, o_record, channel, mask)
    b = load_vector(p_bb, o_record, channel, mask)
    p = load_vector(p_pp, o_record, channel, mask)
    decay = load_vector(p_decay, 0, channel, mask)
    bonus = load_vector(p_bonus, 0, channel, mask)
    offset = start.to(tl.int64) * A
    following = _load(p_r, p_k, p_v, offset, channel, mask)

    for t in range(end - start):
        r, k, v = following
        o_next = offset + tl.where(t + 1 < end - start, A, 0)  # after the last token, the last token again
        following = _load(p_r, p_k, p_v, o_next, channel, mask)

        boosted = bonus + k
        q = tl.maximum(p, boosted)
        past, now = tl.exp(p - q), tl.exp(boosted - q)
        y = tl.fma(past, a, now * v) / tl.fma(past, b, now)
        tl.store(p_out + offset + channel, (tl.sigmoid(r) * y).to(p_out.dtype.element_ty), mask=mask)

        q = tl.maximum(p + decay, k)
        past, now = tl.exp(p + decay - q), tl.exp(k - q)
        a = tl.fma(past, a, now * v)
        b = tl.fma(past, b, now)
        p = q
        offset += A
    tl.store(p_aa + o_record + channel, a, mask=mask)
    tl.store(p_bb + o_record + channel, b, mask=mask)
    tl.store(p_pp + o_record + channel, p, mask=mask)


def wkv4(
    r: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, aa: Tensor, bb: Tensor, pp: Tensor, rows: Any
) -> Tensor:
    """Advances the RWKV-4 state of each row through its tokens; returns its output. The definition has the equation.

    Args:
        r, k, v: [M, A], float32, bfloat16 or float16, contiguous.
        decay, bonus: [A] float32.
        aa, bb, pp: [P, A] float32, of one stride from slot to slot, each slot contiguous. **Updated in place**, only in
            the slots of `rows`.
        rows: `Rows` on the same device. Slot -1 is padding: the output is 0, no state is touched.

    Returns:
        sigmoid(r) * y: [M, A], dtype of `r`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: everything in float32. A row's bits do not depend on how its tokens are cut into calls, on its slot, or on
        the other rows. Error against float64, relative to the largest number, in the interpreter: 2e-7.
    Graph-safe: no allocation besides the output, no host sync.
    """
    width, dtype, device = r.shape[-1], r.dtype, r.device
    for name, x in (("r", r), ("k", k), ("v", v)):
        check(name, x, (rows.num_tokens, width), dtype, device)
    for name, x in (("decay", decay), ("bonus", bonus)):
        check(name, x, (width,), torch.float32, device)
    strides = [
        check_pool(name, x, (width,), (torch.float32,), device) for name, x in (("aa", aa), ("bb", bb), ("pp", pp))
    ]
    if len(set(strides)) > 1:
        raise ValueError(f"aa, bb, pp: got slots {strides} elements apart, expected one stride for all three")
    out = torch.empty_like(r)
    if rows.num_tokens:
        arguments = r, k, v, decay, bonus, aa, bb, pp, rows.slot_index, rows.cu_seqlens, out
        constants = {"SLOT_STRIDE": strides[0], "A": width, "BLOCK": BLOCK, "num_warps": NUM_WARPS, **LAUNCH}
        start_kernel(wkv4_kernel, (rows.num_rows, ceil_div(width, BLOCK)), arguments, constants)
    return out


unsupported_reason = probed("wkv4")


def specializations() -> list[Specialization]:
    """The compilations for models of width 768 with 12 layers; prefill and decode have the same."""
    constexprs = {"SLOT_STRIDE": 12 * 768, "A": 768, "BLOCK": BLOCK}
    found = []
    for vectors in TYPES.values():
        signature = {
            **pointers(vectors, "r", "k", "v", "out"),
            **pointers("fp32", "decay", "bonus", "aa", "bb", "pp"),
            **pointers("i32", "slot", "start"),
        }
        label, is_probe = f"wkv4, {vectors}", vectors == "bf16"
        found.append(Specialization(label, wkv4_kernel, signature, constexprs, NUM_WARPS, NUM_STAGES, is_probe))
    return found
