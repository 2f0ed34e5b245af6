"""What the recurrences over heads share at their launch; see csrc/heads.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernel_support.tensor_checks import check_pool
from .build import Specialization
from .launch import DTYPES, PACK_BYTES, STATE_DTYPES, Kernel

THREADS = {16: 64, 32: 96, 64: 160, 128: 288}
"""Head size → threads of a block."""


def check_heads(state: Tensor, num_heads: int, size: int, device: torch.device) -> int:
    """The slot stride of a state [P, H, N, N].

    Raises:
        ValueError: no kernel for this head size, or the state's shape, dtype, device, strides or address are others.
    """
    if size not in THREADS:
        raise ValueError(f"state: got heads of {size}, expected one of {', '.join(map(str, THREADS))}")
    slot_stride = check_pool("state", state, (num_heads, size, size), STATE_DTYPES, device)
    if state.data_ptr() % PACK_BYTES or slot_stride % 4:
        raise ValueError(
            f"state: got address {state.data_ptr():#x} and slots {slot_stride} numbers apart, expected multiples of "
            f"{PACK_BYTES} and 4"
        )
    return slot_stride


def launch_heads(kernel: Kernel, state: Tensor, rows: Any, slot_stride: int, **values: Any) -> None:
    """One block for each head of each row."""
    _, num_heads, size, _ = state.shape
    dtype = values["out"].dtype
    kernel.launch(
        defines(dtype, state.dtype, size),
        (rows.num_rows * num_heads,),
        THREADS[size],
        state=state,
        slot=rows.slot_index,
        start=rows.cu_seqlens,
        position=rows.position if state.dtype == torch.float16 else None,
        slot_stride=slot_stride,
        num_heads=num_heads,
        **values,
    )


def defines(dtype: torch.dtype, state_dtype: torch.dtype, size: int) -> tuple[str, ...]:
    return f"DTYPE={DTYPES[dtype]}", f"STATE={DTYPES[state_dtype]}", f"SIZE={size}"


def specializations_of(kernel: str) -> list[Specialization]:
    """What models with heads of 64 launch."""
    return [Specialization(kernel, defines(dtype, state, 64)) for dtype in DTYPES for state in STATE_DTYPES]
