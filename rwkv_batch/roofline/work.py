"""The work of a launch besides its bytes: operations of matrix products, instructions, and chains of dependent work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LIBRARY = ("mm", "bmm", "addmm_", "baddbmm_", "addmm", "_int_mm")
"""torch's matrix products."""


@dataclass(frozen=True)
class Work:
    """The work of one launch.

    Args:
        operations: of matrix products, two for a multiplication and its addition.
        depth: numbers that a program multiplies and adds one after the other: K.
        iterations: trips of the loop over K of a Triton product; 0 for the library.
        tile: tokens and depth of the tile of a Triton product, which tell how long a trip takes.
        sm_cycles: cycles that all multiprocessors together need to issue the instructions.
        tokens: of the longest row, which a recurrence takes one after the other. Prompts start first.
        rows: programs that each take one row of logits through the draw.
    """

    operations: float = 0.0
    depth: int = 0
    iterations: int = 0
    tile: tuple[int, int] = (0, 0)
    sm_cycles: float = 0.0
    tokens: int = 0
    rows: int = 0
    is_product: bool = False
    is_batch: bool = False
    is_recurrence: bool = False


NO_WORK = Work()

ROUNDING = 8 * 64 * 64 // 32
"""Instructions of all warps to round a head's state to float16: eight an element, see models/rounding.py."""
RECURRENCE_INSTRUCTIONS = {torch.float32: 2 * 620, torch.float16: 2 * 620 + ROUNDING}
"""SASS instructions of a head's two warps for a token, of Triton's `wkv7` with N = 64.

Counted in what Triton 3.6 and 3.9 compile for sm_90: 601 to 642 a warp with float32 states. `LOOPS` in
tests/kernels/aot_limits.py holds every version to these."""
CUDA_INSTRUCTIONS = {torch.float32: 4 * 320, torch.float16: 4 * 320 + ROUNDING}
"""The same of `wkv7.cu`, whose block takes 320 issue cycles a token; see docs/explanation/kernels.md."""
LOGIT_INSTRUCTIONS = 66
"""SASS instructions of a lane for a logit, of the sampler's first kernel. H100, derived from profile.json: 39 us for
256 rows of 65,536 logits, whose bytes take 22 us."""
CYCLES_OF_A_WEIGHT = 0.103
"""Cycles in which a multiprocessor converts one int8 weight of `mm8` to bfloat16. H100, derived from int8.json: the
head of 1.5B takes 60.8 us for 16 tokens, and its bytes 45 us."""
ISSUES = 4
"""Instructions that a multiprocessor issues in a cycle, one for each of its schedulers."""


def _product(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    """Products with a tile in BLOCK_M, BLOCK_N, BLOCK_K: `programs` tiles, padding included."""
    depth = given["K"]
    return Work(
        operations=2.0 * programs * given["BLOCK_M"] * given["BLOCK_N"] * depth,
        depth=depth,
        iterations=-(-depth // given["BLOCK_K"]),
        tile=(given["BLOCK_M"], given["BLOCK_K"]),
        is_product=True,
    )


def _converting(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    """A product whose programs convert the weights of their tile, again for every tile of tokens."""
    cycles = programs * given["BLOCK_N"] * given["K"] * CYCLES_OF_A_WEIGHT
    return replace(_product(given, programs, longest), sm_cycles=cycles)


def _down(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    return _product({**given, "BLOCK_N": given["BLOCK_R"], "BLOCK_K": given["BLOCK_C"], "K": given["C"]}, programs, 1)


def _up(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    starts = given["STARTS"]
    deepest = max(b - a for a, b in pairwise(starts))
    return _product({**given, "BLOCK_N": given["BLOCK_A"], "BLOCK_K": given["BLOCK_R"], "K": deepest}, programs, 1)


def _recurrence(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    """One program a head of a row. Instructions are those of N = 64, times the elements of a head."""
    return _recurrent(given["p_r"], given["p_state"], RECURRENCE_INSTRUCTIONS, longest)


def _recurrence_cuda(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    return _recurrent(given["r"], given["state"], CUDA_INSTRUCTIONS, longest)


def _recurrent(r: Tensor, state: Tensor, instructions: Mapping[torch.dtype, int], longest: int) -> Work:
    """`instructions` are those of all warps of a head for a token."""
    *_, heads, size, _ = state.shape
    cycles = len(r) * heads * instructions[state.dtype] / ISSUES * (size / 64) ** 2
    return Work(sm_cycles=cycles, tokens=longest, is_recurrence=True)


def _project(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    return _product({**given, "K": given["C"]}, programs, longest)


def _score(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    """Logits of rows, a part of the ids a program: the parts' products one after the other. None are stored."""
    depth, part = given["C"], given["PART"]
    return Work(
        operations=2.0 * programs * given["ROWS"] * part * depth,
        depth=depth,
        iterations=-(-depth // given["DEPTH"]) * -(-part // given["IDS"]),
        tile=(given["ROWS"], given["DEPTH"]),
        is_product=True,
    )


def _shape(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    return Work(sm_cycles=programs * given["TILE"] * LOGIT_INSTRUCTIONS / (32 * ISSUES))


def _select(given: Mapping[str, Any], programs: int, longest: int) -> Work:
    return Work(rows=programs)


_WORK: dict[str, Callable[[Mapping[str, Any], int, int], Work]] = {
    "mm8_kernel": _converting,
    "down_kernel": _down,
    "up_kernel": _up,
    "project_kernel": _project,
    "wkv7_kernel": _recurrence,
    "wkv7.cu": _recurrence_cuda,
    "score_kernel": _score,
    "shape_kernel": _shape,
    "select_kernel": _select,
}


def work_of(kernel: str, given: Mapping[str, Any], programs: int, longest: int) -> Work:
    """The work of a launch of a Triton kernel. A kernel that is not known here is taken for limited by its bytes.

    Args:
        given: its arguments by name.
        programs: of its grid.
        longest: tokens of the longest row.
    """
    if kernel in _WORK:
        return _WORK[kernel](given, programs, longest)
    if {"BLOCK_M", "BLOCK_N", "BLOCK_K", "K"} <= given.keys():
        return _product(given, programs, longest)
    return NO_WORK
