"""Layer norm, token shift and interpolations in one launch; see `shift_lerp` in models/blocks.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_pool
from .build import Specialization
from .launch import DTYPES, Kernel, built, vector_width

__all__ = ["shift_lerp", "specializations", "unsupported_reason"]

MAX_THREADS = 256
_KERNEL = Kernel(
    "shift_lerp",
    pointers=("x", "weight", "bias", "mix", "shift", "normed", "delta", "mixed", "slot", "start", "token_rows"),
    int64s=("slot_stride", "num_tokens"),
    int32s=("width", "num_mixes"),
)


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
    Graph-safe after its first launch: no allocation besides the outputs, no host sync.
    """
    width = x.shape[-1]
    dtype, device = x.dtype, x.device
    check("x", x, (rows.num_tokens, width), dtype, device)
    check("norm.weight", norm.weight, (width,), dtype, device)
    check("norm.bias", norm.bias, (width,), dtype, device)
    check("mix", mix, (len(mix), width), dtype, device)
    slot_stride = check_pool("shift", shift, (width,), (dtype,), device)
    normed, delta = (torch.empty_like(x), torch.empty_like(x)) if keep_parts else (None, None)
    mixed = torch.empty((len(mix), *x.shape), dtype=dtype, device=device)
    if rows.num_tokens:
        count = vector_width((width, slot_stride), (x, norm.weight, norm.bias, mix, shift, normed, delta, mixed))
        threads = min(-(-width // (32 * count)) * 32, MAX_THREADS)
        _KERNEL.launch(
            _defines(dtype, count, -(-width // (threads * count))),
            (rows.num_tokens,),
            threads,
            x=x,
            weight=norm.weight,
            bias=norm.bias,
            mix=mix,
            shift=shift,
            normed=normed,
            delta=delta,
            mixed=mixed,
            slot=rows.slot_index,
            start=None if rows.is_decode else rows.cu_seqlens,
            token_rows=None if rows.is_decode else rows.token_rows,
            slot_stride=slot_stride,
            num_tokens=rows.num_tokens,
            width=width,
            num_mixes=len(mix),
        )
    return normed, delta, mixed


def _defines(dtype: torch.dtype, count: int, parts: int) -> tuple[str, ...]:
    """Macros of a compilation. Parts are rounded up to a power of two, so that there are few compilations."""
    return f"DTYPE={DTYPES[dtype]}", f"PACK={count}", f"PARTS={1 << (parts - 1).bit_length()}"


unsupported_reason = built("shift_lerp")


def specializations() -> list[Specialization]:
    """The compilations that models of a width up to 8192 launch."""
    return [Specialization("shift_lerp", _defines(dtype, 4, parts)) for dtype in DTYPES for parts in (1, 2, 4, 8)]
