"""Low-rank pairs, all in two launches; see `low_rank` in models/matrices/low_rank.py for the definition."""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check
from .launch import ceil_div, is_interpreted, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES, Tile, activate, multiply

__all__ = [
    "DOWN",
    "UP",
    "down_kernel",
    "low_rank",
    "specializations",
    "unsupported_reason",
    "up_kernel",
]

DOWN = {
    torch.bfloat16: (Tile(64, 32, 128, 4, 3), Tile(64, 64, 64, 4, 4)),
    torch.float16: (Tile(64, 32, 128, 4, 3), Tile(64, 64, 64, 4, 4)),
    torch.float32: (Tile(64, 32, 32, 4, 3), Tile(64, 32, 32, 4, 3)),
}
"""Tiles of the first products: for fewer than `MANY_RANKS` ranks in all, small ones, so that there are more programs;
and for more."""
MANY_RANKS = 512
UP = {
    torch.bfloat16: Tile(64, 64, 64, 4, 2),
    torch.float16: Tile(64, 64, 64, 4, 2),
    torch.float32: Tile(64, 32, 32, 4, 2),
}
"""Tiles of the second products."""


@triton.jit(do_not_specialize=["num_tokens"])
def down_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_down,
    p_low,
    num_tokens,
    C: tl.constexpr,
    STARTS: tl.constexpr,
    SOURCES: tl.constexpr,
    ACTIVATIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [M / BLOCK_M, blocks of ranks]: act_j(x[source_j] down_j^T) of each pair side by side, [M, ΣR].

    A block of ranks belongs to one pair.
    """
    i_block = tl.program_id(1)
    pair = 0
    source = 0
    start = 0
    end = 0
    first = 0
    for j in tl.static_range(len(SOURCES)):
        if i_block >= first:
            pair = j
            source = SOURCES[j]
            start = STARTS[j] + (i_block - first) * BLOCK_R
            end = STARTS[j + 1]
        first += tl.cdiv(STARTS[j + 1] - STARTS[j], BLOCK_R)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    r = tl.multiple_of(start, ALIGNMENT) + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    mask_m = (m < num_tokens)[:, None]
    mask_r = (r < tl.multiple_of(end, ALIGNMENT))[None, :]
    token = m.to(tl.int64)[:, None]
    p_xs = p_x + (source * num_tokens.to(tl.int64) + token) * C + c[None, :]
    p_downs = p_down + r[None, :] * C + c[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for done in range(0, C, BLOCK_C):
        if C % BLOCK_C:
            mask_c = c < C - done
            x = tl.load(p_xs, mask=mask_m & mask_c[None, :], other=0.0)
            down = tl.load(p_downs, mask=mask_r & mask_c[:, None], other=0.0)
        else:
            x = tl.load(p_xs, mask=mask_m, other=0.0)
            down = tl.load(p_downs, mask=mask_r, other=0.0)
        total = multiply(x, down, total, UPCAST)
        p_xs += BLOCK_C
        p_downs += BLOCK_C
    for j in tl.static_range(len(SOURCES)):
        if pair == j:
            total = activate(total, tl.constexpr(ACTIVATIONS[j]))
    tl.store(p_low + token * STARTS[len(SOURCES)] + r[None, :], total, mask=mask_m & mask_r)


@triton.jit(do_not_specialize=["num_tokens"])
def up_kernel(  # type: ignore[no-untyped-def]
    p_low,
    p_up,
    p_y,
    num_tokens,
    A: tl.constexpr,
    STARTS: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_R: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [M / BLOCK_M, A / BLOCK_A, n]: low_j up_j, [n, M, A]."""
    pair = tl.program_id(2)
    start = 0
    end = STARTS[1]
    for j in tl.static_range(1, NUM_PAIRS):
        if pair == j:
            start = STARTS[j]
            end = STARTS[j + 1]
    start = tl.multiple_of(start, ALIGNMENT)
    rank = tl.multiple_of(end - start, ALIGNMENT)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    a = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    r = tl.arange(0, BLOCK_R)
    mask_m = (m < num_tokens)[:, None]
    mask_a = (a < A)[None, :]
    token = m.to(tl.int64)[:, None]
    p_lows = p_low + token * STARTS[NUM_PAIRS] + start + r[None, :]
    p_ups = p_up + (start + r)[:, None] * A + a[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_A), tl.float32)
    for done in range(0, rank, BLOCK_R):
        mask_r = r < rank - done
        low = tl.load(p_lows, mask=mask_m & mask_r[None, :], other=0.0)
        up = tl.load(p_ups, mask=mask_a & mask_r[:, None], other=0.0)
        total = multiply(low, up, total, UPCAST)
        p_lows += BLOCK_R
        p_ups += BLOCK_R * A
    token += pair * num_tokens.to(tl.int64)
    tl.store(p_y + token * A + a[None, :], total, mask=mask_m & mask_a)


def low_rank(inputs: Tensor, p: Any) -> Tensor:
    """up_j(act_j(down_j(inputs[source_j]))) for each pair j.

    Args:
        inputs: [m, M, C], float32, bfloat16 or float16, contiguous.
        p: a `LowRank` whose stacked factors `down` [ΣR, C] and `up` [ΣR, A] are there, dtype of `inputs`, contiguous.

    Returns:
        [n, M, A], dtype of `inputs`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: sums and activations in float32; the intermediate [M, ΣR] is rounded to the dtype of `inputs`. A row's
        bits do not depend on M or on the other rows: the tiles depend on the weights only.
    Graph-safe: no allocation besides the result and the intermediate, no host sync.
    """
    starts = check_pairs(inputs, p)
    num_tokens, width = inputs.shape[1:]
    dtype, device = inputs.dtype, inputs.device
    sources = tuple(pair.source for pair in p.pairs)
    if not num_tokens:
        return torch.empty(len(sources), 0, p.up.shape[1], dtype=dtype, device=device)
    low = torch.empty(num_tokens, starts[-1], dtype=dtype, device=device)
    tile = down_tile(starts, dtype)
    constants = down_constants(width, starts, sources, tuple(pair.activation for pair in p.pairs), tile)
    start_kernel(
        down_kernel,
        (ceil_div(num_tokens, tile.tokens), num_blocks_of(starts, tile)),
        (inputs, p.down, low, num_tokens),
        {**constants, "UPCAST": is_interpreted(), **tile.options},
    )
    return multiply_up(low, p.up, starts)


def multiply_up(low: Tensor, up: Tensor, starts: tuple[int, ...]) -> Tensor:
    """low_j up_j of each pair.

    Args:
        low: [M, ΣR], the results of the first factors side by side.
        up: [ΣR, A], the second factors one below the other.
        starts: as in `LowRank`.

    Returns:
        [n, M, A], dtype of `low`.
    """
    num_tokens, out_width, count, tile = len(low), up.shape[1], len(starts) - 1, UP[low.dtype]
    y = torch.empty(count, num_tokens, out_width, dtype=low.dtype, device=low.device)
    start_kernel(
        up_kernel,
        (ceil_div(num_tokens, tile.tokens), ceil_div(out_width, tile.rows), count),
        (low, up, y, num_tokens),
        {**up_constants(out_width, starts, tile), "UPCAST": is_interpreted(), **tile.options},
    )
    return y


def num_blocks_of(starts: tuple[int, ...], tile: Tile) -> int:
    """Blocks of ranks, each of which belongs to one pair."""
    return sum(ceil_div(end - start, tile.rows) for start, end in pairwise(starts))


def check_pairs(inputs: Tensor, p: Any) -> tuple[int, ...]:
    """The pairs' `starts`.

    Raises:
        ValueError: an argument is not as `low_rank` says.
    """
    if inputs.dim() != 3 or p.down is None or p.up is None:
        stacked = "stacked factors" if p.down is not None and p.up is not None else "no stacked factors"
        raise ValueError(f"inputs, p: got {list(inputs.shape)} and {stacked}, expected [m, M, C] and stacked factors")
    num_inputs, _, width = inputs.shape
    num_needed = 1 + max(pair.source for pair in p.pairs)
    if num_needed > num_inputs:
        raise ValueError(f"inputs: got {num_inputs} of them, expected at least {num_needed}")
    check("inputs", inputs, inputs.shape, inputs.dtype, p.down.device)
    starts: tuple[int, ...] = p.starts
    check("down", p.down, (starts[-1], width), inputs.dtype, inputs.device)
    check("up", p.up, (starts[-1], p.up.shape[-1]), inputs.dtype, inputs.device)
    return starts


def down_tile(starts: tuple[int, ...], dtype: torch.dtype) -> Tile:
    """The tile of the first products, by the number of ranks in all."""
    return DOWN[dtype][starts[-1] >= MANY_RANKS]


@cache
def down_constants(
    width: int, starts: tuple[int, ...], sources: tuple[int, ...], activations: tuple[str | None, ...], tile: Tile
) -> dict[str, Any]:
    """Constants of `down_kernel`. Pair j has the ranks starts[j] to starts[j + 1] - 1."""
    return {
        "C": width,
        "STARTS": starts,
        "SOURCES": sources,
        "ACTIVATIONS": activations,
        "ALIGNMENT": math.gcd(16, *starts),
        "BLOCK_M": tile.tokens,
        "BLOCK_R": tile.rows,
        "BLOCK_C": tile.depth,
    }


@cache
def up_constants(out_width: int, starts: tuple[int, ...], tile: Tile) -> dict[str, Any]:
    """Constants of `up_kernel`."""
    return {
        "A": out_width,
        "STARTS": starts,
        "NUM_PAIRS": len(starts) - 1,
        "ALIGNMENT": math.gcd(16, *starts),
        "BLOCK_M": tile.tokens,
        "BLOCK_A": tile.rows,
        "BLOCK_R": tile.depth,
    }


unsupported_reason = probed("low_rank")


def specializations() -> list[Specialization]:
    """The compilations for models of width 768, and for one of width 4096 with many ranks."""

    def both(
        use: str,
        dtype: torch.dtype,
        width: int,
        ranks: tuple[int, ...],
        activations: tuple[str | None, ...],
        is_probe: bool = False,
    ) -> list[Specialization]:
        starts, name, no_upcast = tuple(accumulate(ranks, initial=0)), TYPES[dtype], {"UPCAST": False}
        tile = down_tile(starts, dtype)
        down = down_constants(width, starts, tuple(range(len(ranks))), activations, tile) | no_upcast
        signature = {**pointers(name, "x", "down", "low"), "num_tokens": "i32"}
        options = tile.num_warps, tile.num_stages, is_probe
        found = [Specialization(f"{use} {name} down", down_kernel, signature, down, *options)]
        tile = UP[dtype]
        up = up_constants(width, starts, tile) | no_upcast
        signature = {**pointers(name, "low", "up", "y"), "num_tokens": "i32"}
        options = tile.num_warps, tile.num_stages, is_probe
        return [*found, Specialization(f"{use} {name} up", up_kernel, signature, up, *options)]

    v7 = (64, 64, 128, 32), ("tanh", None, "sigmoid", None)
    return [
        *both("v7", torch.bfloat16, 768, *v7),
        *both("v6 shares", torch.bfloat16, 768, (32,) * 5, ("tanh",) * 5),
        *both("v7 of width 4096", torch.bfloat16, 4096, (128, 128, 480, 96), v7[1], is_probe=True),
        *both("v7", torch.float16, 768, *v7),
        *both("v7", torch.float32, 768, *v7),
    ]
