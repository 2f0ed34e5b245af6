"""Helpers of the recurrences: parts of the kernels, and their launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.recurrences import Arguments
from .launch import start_kernel

NUM_WARPS = {16: 1, 32: 1, 64: 2, 128: 8}
"""Head size → warps of a program, which keeps one head's state [K, V] in registers.

Up to head size 64 nothing spills, and a vector [N] has at least one number for each thread: more threads would load
numbers several times. At 128 v7 spills with any number of warps. The table is fixed because the number of warps orders
the sums, and a row's bits must not depend on the other rows."""
NUM_STAGES = 1
"""The kernels load the next token's vectors themselves; Triton's pipelining has nothing to add."""
LAUNCH = {"num_stages": NUM_STAGES, "enable_fp_fusion": True}


@triton.jit
def last_first():  # type: ignore[no-untyped-def]
    """This program's number from the end. Prompts stand behind rows of one token, take longest, and so start first."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def load_vector(pointer, offset, channel, mask=None):  # type: ignore[no-untyped-def]
    """One token's vector of one input, as float32; zeros where the input is None."""
    if pointer is not None:
        x = tl.load(pointer + offset + channel, mask=mask).to(tl.float32)
    else:
        x = tl.zeros_like(channel).to(tl.float32)
    return x


@triton.jit
def write_zeros(p_out, start, end, channel, WIDTH: tl.constexpr, mask=None):  # type: ignore[no-untyped-def]
    """Writes the output of a padding row, tokens start:end."""
    offset = start.to(tl.int64) * WIDTH
    for _ in range(start, end):
        tl.store(p_out + offset + channel, 0.0, mask=mask)
        offset += WIDTH


@triton.jit
def head_norm(y, weight, bias, eps, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Group norm of one head's output [N]."""
    centred = y - tl.sum(y, 0) / N
    variance = tl.sum(centred * centred, 0) / N
    return centred * tl.rsqrt(variance + eps) * weight + bias


@triton.jit
def hash_position(position, head):  # type: ignore[no-untyped-def]
    """Hash of a token's position and a head, int32 scalars, as uint32; see models/rounding.py."""
    h = position.to(tl.uint32, bitcast=True) * 0x9E3779B1 + head.to(tl.uint32, bitcast=True) * 0x85EBCA77 + 0xC2B2AE3D
    h = (h ^ (h >> 16)) * 0x7FEB352D
    return (h ^ (h >> 15)) * 0x846CA68B


@triton.jit
def spread(place):  # type: ignore[no-untyped-def]
    """The bits of rows or columns, int32, repeated over uint32; see models/rounding.py."""
    place = place.to(tl.uint32, bitcast=True)
    return (place * 0x01010101) ^ (place * 0x02040810)


@triton.jit
def round_stochastically(x, position, head, row, column):  # type: ignore[no-untyped-def]
    """Rounds float32 to values that float16 holds, at random and without bias.

    Bit by bit the same as `round_stochastically` in models/rounding.py, which explains it: change both or none.

    Args:
        x: [R, N], float32.
        position, head: int32 scalars: how many tokens the sequence had before this one, and whose state `x` is.
        row, column: [R] and [N], int32: the numbers' places in the head's state.

    Returns:
        [R, N], float32, unchanged by a conversion to float16. Above 65504 it is infinite.
    """
    h = hash_position(position, head)
    of_row = spread(row) ^ (h ^ (h >> 16))
    of_column = spread(column) ^ (h * 0x9E3779B1)
    draw = (of_row[:, None] * of_column[None, :]) >> 19
    bits = (x * 1.925929944387236e-34).to(tl.uint32, bitcast=True) + draw  # 2^-112
    # An infinite factor is right for NaN too: bits of a NaN plus random bits are those of a NaN or, cut off, of zero.
    scale = tl.where(tl.abs(x) <= 65504.0, 5192296858534827628530496329220096.0, float("inf"))  # 2^112
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True) * scale


def launch_heads(
    kernel: Any,
    inputs: Arguments,
    parameters: Arguments,
    eps: float,
    state: Tensor,
    rows: Any,
    own: Sequence[Any] = (),
    constants: Mapping[str, Any] | None = None,
) -> Tensor:
    """Launches a recurrence over heads, one program for each head of each row; returns its output.

    Args:
        inputs: `r` and other vectors of tokens, [M, A]: the kernel's first arguments, in order.
        parameters: of the heads: the kernel's next arguments, in order.
        state: [P, H, N, N].
        rows: `Rows`.
        own: the kernel's own run-time arguments, in order.
        constants: the kernel's own constants, by name.
    """
    _, num_heads, size, _ = state.shape
    out = torch.empty_like(inputs["r"])  # type: ignore[arg-type]
    if rows.num_tokens:
        position = rows.position if state.dtype == torch.float16 else None
        index = rows.slot_index, rows.cu_seqlens, position
        sizes = {"SLOT_STRIDE": state.stride(0), "H": num_heads, "N": size, **(constants or {})}
        arguments = *inputs.values(), *parameters.values(), state, *index, out, eps, *own
        options = {"num_warps": NUM_WARPS[size], **LAUNCH}
        start_kernel(kernel, (rows.num_rows * num_heads,), arguments, {**sizes, **options})
    return out
