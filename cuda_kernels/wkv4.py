"""RWKV-4's recurrence; see `wkv4` in models/rwkv4.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_pool
from .build import Specialization
from .launch import DTYPES, Kernel, built

__all__ = ["specializations", "unsupported_reason", "wkv4"]

THREADS = 128
"""Channels of a block."""
_KERNEL = Kernel(
    "wkv4",
    pointers=("r", "k", "v", "decay", "bonus", "aa", "bb", "pp", "out", "slot", "start"),
    int64s=("slot_stride",),
    int32s=("width",),
)


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
        the other rows. Error against float64, relative to the largest number, emulated on a CPU: 1e-7.
    Graph-safe after its first launch: no allocation besides the output, no host sync.
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
        _KERNEL.launch(
            (f"DTYPE={DTYPES[dtype]}",),
            (rows.num_rows, -(-width // THREADS)),
            THREADS,
            r=r,
            k=k,
            v=v,
            decay=decay,
            bonus=bonus,
            aa=aa,
            bb=bb,
            pp=pp,
            out=out,
            slot=rows.slot_index,
            start=rows.cu_seqlens,
            slot_stride=strides[0],
            width=width,
        )
    return out


unsupported_reason = built("wkv4")


def specializations() -> list[Specialization]:
    """A compilation for each dtype; the width is an argument."""
    return [Specialization("wkv4", (f"DTYPE={name}",)) for name in DTYPES.values()]
