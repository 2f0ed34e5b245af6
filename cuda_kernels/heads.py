"""Checks and launch of the recurrences over heads; see csrc/heads.h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernel_support.recurrences import Arguments
from ..kernel_support.tensor_checks import check_pool
from .build import Specialization
from .launch import DTYPES, PACK_BYTES, STATE_DTYPES, Kernel

THREADS = {16: 160, 32: 192, 64: 256, 128: 384}
"""Head size → threads of a block; see csrc/heads.h."""


def check_heads(state: Tensor, num_heads: int, size: int, device: torch.device) -> None:
    """Checks a state [P, H, N, N].

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


def launch_heads(
    kernel: Kernel, inputs: Arguments, parameters: Arguments, eps: float, state: Tensor, rows: Any
) -> Tensor:
    """Launches a recurrence over heads, one block for each head of each row; returns its output.

    Args:
        inputs: `r` and other vectors of tokens, [M, A].
        parameters: of the heads.
        state: [P, H, N, N].
        rows: `Rows`.
    """
    _, num_heads, size, _ = state.shape
    out = torch.empty_like(inputs["r"])  # type: ignore[arg-type]
    if rows.num_tokens:
        kernel.launch(
            defines(out.dtype, state.dtype, size),
            (rows.num_rows * num_heads,),
            THREADS[size],
            **inputs,
            **parameters,
            eps=eps,
            state=state,
            out=out,
            slot=rows.slot_index,
            start=rows.cu_seqlens,
            position=rows.position if state.dtype == torch.float16 else None,
            slot_stride=state.stride(0),
            num_heads=num_heads,
        )
    return out


def defines(dtype: torch.dtype, state_dtype: torch.dtype, size: int) -> tuple[str, ...]:
    """Macros of a compilation."""
    return f"DTYPE={DTYPES[dtype]}", f"STATE={DTYPES[state_dtype]}", f"SIZE={size}"


def specializations_of(kernel: str) -> list[Specialization]:
    """The compilations that models with heads of 64 launch."""
    return [Specialization(kernel, defines(dtype, state, 64)) for dtype in DTYPES for state in STATE_DTYPES]
