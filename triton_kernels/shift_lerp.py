"""Layer norm, token shift and interpolations in one launch; see `shift_lerp` in models/blocks.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_all, check_pool
from .launch import power_of_two, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES

__all__ = ["NUM_WARPS", "shift_lerp", "shift_lerp_kernel", "specializations", "unsupported_reason"]

EPS = 1e-5
NUM_WARPS = {256: 1, 512: 2, 1024: 4, 2048: 8, 4096: 8, 8192: 16}
"""Channels of a token, at most → warps of its program. Fixed, as the number of warps orders the sums."""
MAX_WARPS = 16
ENABLE_FP_FUSION = False
"""Whether the compiler may fuse a product and a sum into one instruction. It would decide anew in each compilation:
decode steps and prompts are two compilations, and a token's bits must be the same in both. The kernel asks for a fused
instruction by `tl.fma`."""


@triton.jit
def _normalize(p_x, token, channel, mask, weight, bias, EPS: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Layer norm of one token, float32, rounded to the dtype of x."""
    x = tl.load(p_x + token.to(tl.int64) * C + channel, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, x - tl.sum(x, 0) / C, 0.0)
    variance = tl.sum(centred * centred, 0) / C
    normed = tl.fma(centred * (1.0 / tl.sqrt(variance + EPS)), weight, bias)
    return normed.to(p_x.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=["num_tokens"])
def shift_lerp_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_weight,
    p_bias,
    p_mix,
    p_shift,
    p_slot,
    p_start,
    p_row,
    p_normed,
    p_delta,
    p_mixed,
    num_tokens,
    SLOT_STRIDE: tl.constexpr,
    C: tl.constexpr,
    NUM_MIXES: tl.constexpr,
    IS_DECODE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [M]: one token.

    Only the program of a row's first token reads and writes the row's slot, so that the order of programs does not
    matter. It reads the previous token's norm from the slot, and writes the norm of the row's last token, which it
    computes itself. All other programs compute the norm of the token before theirs.
    """
    token = tl.program_id(0)
    if IS_DECODE:
        row = token
        is_first = True
        other = token
    else:
        row = tl.load(p_row + token)
        is_first = tl.load(p_start + row) == token
        other = tl.where(is_first, tl.load(p_start + row + 1), token) - 1
    slot = tl.load(p_slot + row)
    channel = tl.arange(0, BLOCK)
    mask = channel < C
    # A comparison with a scalar bound, as the interpreter cannot combine a mask with a scalar condition.
    shifted = channel < tl.where(is_first & (slot >= 0), C, 0)
    p_old = p_shift + slot.to(tl.int64) * SLOT_STRIDE + channel
    previous = tl.load(p_old, mask=shifted, other=0.0).to(tl.float32)
    weight = tl.load(p_weight + channel, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(p_bias + channel, mask=mask, other=0.0).to(tl.float32)
    normed = _normalize(p_x, token, channel, mask, weight, bias, EPS, C)
    if IS_DECODE:
        tl.store(p_old, normed, mask=shifted)
    else:
        other_normed = _normalize(p_x, other, channel, mask, weight, bias, EPS, C)
        tl.store(p_old, other_normed, mask=shifted)
        previous = tl.where(is_first, previous, other_normed)
    delta = (previous - normed).to(p_x.dtype.element_ty).to(tl.float32)
    offset = token.to(tl.int64) * C + channel
    if p_normed is not None:
        tl.store(p_normed + offset, normed, mask=mask)
        tl.store(p_delta + offset, delta, mask=mask)
    for _ in tl.static_range(NUM_MIXES):
        mix = tl.load(p_mix + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(p_mixed + offset, tl.fma(delta, mix, normed), mask=mask)
        p_mix += C
        offset += num_tokens.to(tl.int64) * C


def shift_lerp(
    x: Tensor, norm: Any, mix: Tensor, shift: Tensor, rows: Any, keep_parts: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Layer norm, then interpolate each token with the one before it in its sequence.

        z_t = layer_norm(x_t),   d_t = z_{t-1} - z_t,   mixed[j]_t = z_t + d_t * mix[j]

    Args:
        x: [M, C], float32, bfloat16 or float16, contiguous.
        norm: weight and bias, [C], dtype of `x`.
        mix: [n, C], dtype of `x`: the share of the previous token in each of n interpolations.
        shift: [P, C], dtype of `x`, contiguous but for its first axis. z of each slot's latest token. **Updated in
            place**, only in the slots of `rows`.
        rows: `Rows` on the same device. Slot -1 is padding: its first token has zeros before it, no state is touched.
        keep_parts: return z and d too.

    Returns:
        z [M, C] and d [M, C], or None for both, and the interpolations [n, M, C]; dtype of `x`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: in float32; z and d are rounded to the dtype of `x` before they are used. A row's bits do not depend on
        how its tokens are cut into calls, on its slot, or on the other rows.
    Graph-safe: no allocation besides the outputs, no host sync.
    """
    width = x.shape[-1]
    dtype, device = x.dtype, x.device
    check("x", x, (rows.num_tokens, width), dtype, device)
    check_all({"norm.weight": norm.weight, "norm.bias": norm.bias}, (width,), dtype, device)
    check("mix", mix, (len(mix), width), dtype, device)
    slot_stride = check_pool("shift", shift, (width,), (dtype,), device)
    normed, delta = (torch.empty_like(x), torch.empty_like(x)) if keep_parts else (None, None)
    mixed = torch.empty((len(mix), *x.shape), dtype=dtype, device=device)
    if rows.num_tokens:
        start, token_rows = (None, None) if rows.is_decode else (rows.cu_seqlens, rows.token_rows)
        block = power_of_two(width)
        inputs = x, norm.weight, norm.bias, mix, shift, rows.slot_index, start, token_rows
        constants = {
            "SLOT_STRIDE": slot_stride,
            "C": width,
            "NUM_MIXES": len(mix),
            "IS_DECODE": rows.is_decode,
            "EPS": EPS,
            "BLOCK": block,
            "num_warps": _num_warps(block),
            "num_stages": 1,
            "enable_fp_fusion": ENABLE_FP_FUSION,
        }
        outputs = normed, delta, mixed, rows.num_tokens
        start_kernel(shift_lerp_kernel, (rows.num_tokens,), (*inputs, *outputs), constants)
    return normed, delta, mixed


def _num_warps(block: int) -> int:
    """Warps of a program for a block of channels."""
    return next((warps for limit, warps in NUM_WARPS.items() if block <= limit), MAX_WARPS)


unsupported_reason = probed("shift_lerp")


def specializations() -> list[Specialization]:
    """The compilations for models of width 768 with 12 layers, and the widest block."""

    def one(
        use: str,
        num_mixes: int,
        is_decode: bool,
        keep_parts: bool = False,
        dtype: str = "bf16",
        width: int = 768,
        is_probe: bool = False,
    ) -> Specialization:
        absent = [*(("start", "row") if is_decode else ()), *(() if keep_parts else ("normed", "delta"))]
        signature = {
            **pointers(dtype, "x", "weight", "bias", "mix", "shift", "normed", "delta", "mixed"),
            **pointers("i32", "slot", "start", "row"),
            "num_tokens": "i32",
        }
        constexprs = {
            **{f"p_{name}": None for name in absent},
            "SLOT_STRIDE": 12 * width,
            "C": width,
            "NUM_MIXES": num_mixes,
            "IS_DECODE": is_decode,
            "EPS": EPS,
            "BLOCK": power_of_two(width),
        }
        signature = {name: kind for name, kind in signature.items() if name not in constexprs}
        num_warps = _num_warps(power_of_two(width))
        label = f"{use} {dtype} {'decode' if is_decode else 'prefill'}"
        return Specialization(
            label, shift_lerp_kernel, signature, constexprs, num_warps, 1, is_probe, enable_fp_fusion=ENABLE_FP_FUSION
        )

    return [
        *(one("v7 time mix", 6, is_decode, dtype=name) for name in TYPES.values() for is_decode in (True, False)),
        one("v6 channel mix", 2, True),
        one("v6 time mix", 1, False, keep_parts=True),
        one("DeepEmbed", 1, True, keep_parts=True),
        one("v7 time mix, C = 8192,", 6, False, width=8192, is_probe=True),
    ]
