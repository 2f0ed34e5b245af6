"""Log-probabilities of given tokens straight from the last layer; see models/scoring.py for the definition."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check
from . import launch
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import multiply


class Tiles(NamedTuple):
    """The tiles of the products. They do not depend on the number of rows, so that a row's bits do not either."""

    rows: int
    ids: int
    depth: int
    num_warps: int
    num_stages: int


HALF = Tiles(rows=128, ids=128, depth=64, num_warps=8, num_stages=3)
SINGLE = Tiles(rows=32, ids=64, depth=32, num_warps=4, num_stages=2)
SPLITS = 128
"""Parts of the vocabulary, each computed by programs of its own."""
BLOCK, COMBINE_WARPS = 1024, 4
"""Features of a row that are multiplied with its target's weights at a time."""
NONE = tl.constexpr(2**31 - 1)
"""Above every id."""


@triton.jit
def product(p_xs, p_weights, C: tl.constexpr, ROWS: tl.constexpr, IDS: tl.constexpr, DEPTH: tl.constexpr, UPCAST):
    """x W^T of one tile, [ROWS, IDS] float32."""
    y = tl.zeros([ROWS, IDS], tl.float32)
    k = tl.arange(0, DEPTH)
    for start in range(0, C, DEPTH):
        if C % DEPTH == 0:
            x = tl.load(p_xs)
            weight = tl.load(p_weights)
        else:
            x = tl.load(p_xs, mask=(start + k < C)[None, :], other=0.0)
            weight = tl.load(p_weights, mask=(start + k < C)[:, None], other=0.0)
        y = multiply(x, weight, y, UPCAST)
        p_xs += DEPTH
        p_weights += DEPTH
    return y


@triton.jit(do_not_specialize=["m"])
def score_kernel(
    p_x,
    p_weight,
    p_peak,
    p_total,
    p_first,
    m,
    V: tl.constexpr,
    C: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [m / ROWS, parts]. Rows beyond m and ids beyond V repeat the last one; they are dropped."""
    part = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, DEPTH)
    p_xs = p_x + tl.minimum(row, m - 1).to(tl.int64)[:, None] * C + k[None, :]
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    first = tl.full([ROWS], NONE, tl.int32)
    for start in range(part * PART, tl.minimum(part * PART + PART, V), IDS):
        ids = start + tl.arange(0, IDS)
        p_weights = p_weight + tl.minimum(ids, V - 1).to(tl.int64)[None, :] * C + k[:, None]
        y = product(p_xs, p_weights, C, ROWS, IDS, DEPTH, UPCAST)
        y = tl.where((ids < V)[None, :], y, float("-inf"))
        highest = tl.max(y, 1)
        place = tl.min(tl.where(y == highest[:, None], ids[None, :], NONE), 1)
        first = tl.where(highest > peak, place, first)
        above = tl.maximum(peak, highest)
        zero = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(peak - zero) + tl.sum(tl.exp(y - zero[:, None]), 1)
        peak = above
    place = part * m.to(tl.int64) + row
    tl.store(p_peak + place, peak, mask=row < m)
    tl.store(p_total + place, total, mask=row < m)
    tl.store(p_first + place, first, mask=row < m)


@triton.jit(do_not_specialize=["m"])
def combine_kernel(
    p_x,
    p_weight,
    p_target,
    p_row,
    p_peak,
    p_total,
    p_first,
    p_logprob,
    p_greedy,
    m,
    V: tl.constexpr,
    C: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [n]: one target."""
    i = tl.program_id(0)
    row = tl.load(p_row + i)
    target = tl.load(p_target + i)
    is_id = (target >= 0) & (target < V)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(p_x + row * C + k, mask=k < C, other=0.0).to(tl.float32)
        weight = tl.load(p_weight + tl.where(is_id, target, 0) * C + k, mask=k < C, other=0.0).to(tl.float32)
        products += x * weight
    logit = tl.where(is_id, tl.sum(products, 0), float("nan"))

    part = tl.arange(0, triton.next_power_of_2(NUM_PARTS))
    place = part * m.to(tl.int64) + row
    peaks = tl.load(p_peak + place, mask=part < NUM_PARTS, other=float("-inf"))
    totals = tl.load(p_total + place, mask=part < NUM_PARTS, other=0.0)
    firsts = tl.load(p_first + place, mask=part < NUM_PARTS, other=NONE)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp(peaks - peak), 0)
    first = tl.min(tl.where(peaks == peak, firsts, NONE), 0)
    logprob = logit.to(tl.float64) - (peak.to(tl.float64) + tl.log(total.to(tl.float64)))
    # The target's logit is summed in another order than in its tile, and may be above the normalizer. NaN stays NaN.
    tl.store(p_logprob + i, tl.where(logprob > 0, 0.0, logprob))
    tl.store(p_greedy + i, ((first == target) & (total > 0)).to(tl.uint8))


def score(x: Tensor, head: Any, targets: Tensor, rows: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
    """As `score` in models/scoring.py; logits are never written to memory, nor rounded to the dtype of x.

    The first kernel computes logits tile by tile. For each part of the vocabulary it keeps each row's largest logit,
    the first id that has it, and the sum of exp(logit - largest). The second kernel computes the targets' own logits
    and combines the parts.

    Args:
        x: [m, C] float32, bfloat16 or float16, contiguous.
        head: has a `weight` [V, C], dtype of x, contiguous.
        targets: [n] int64, in [0, V).
        rows: [n] int64, in [0, m), in any order.
        ops: not used.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what
            was expected.

    Numerics: products and sums in float32; log-probabilities are within 1e-6 of float64's for logits of about 10.
        A row with NaN gets NaN and False. A row's bits do not depend on the number of rows.
    Graph-safe: allocations depend on m, n and V alone; no host sync.
    """
    _check(x, head.weight, targets, rows)
    (m, width), size, n = x.shape, len(head.weight), len(targets)
    logprobs = torch.empty(n, dtype=torch.float64, device=x.device)
    greedy = torch.empty(n, dtype=torch.uint8, device=x.device)
    if n == 0:
        return logprobs, greedy.view(torch.bool)
    tiles = SINGLE if x.dtype == torch.float32 else HALF
    part, num_parts = _parts(size, tiles)
    peaks, totals = torch.empty(2, num_parts, m, dtype=torch.float32, device=x.device)
    firsts = torch.empty(num_parts, m, dtype=torch.int32, device=x.device)
    constants = _constants(size, width, part, tiles) | {"UPCAST": launch.is_interpreted()}
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages, "enable_fp_fusion": True}
    grid = launch.ceil_div(m, tiles.rows), num_parts
    launch.start_kernel(score_kernel, grid, (x, head.weight, peaks, totals, firsts, m), constants | options)
    arguments = x, head.weight, targets, rows, peaks, totals, firsts, logprobs, greedy, m
    constants = {"V": size, "C": width, "NUM_PARTS": num_parts, "BLOCK": BLOCK}
    options = {"num_warps": COMBINE_WARPS, "num_stages": 1, "enable_fp_fusion": True}
    launch.start_kernel(combine_kernel, (n,), arguments, constants | options)
    return logprobs, greedy.view(torch.bool)


def _check(x: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> None:
    """Raises ValueError where a tensor is not as `score` says."""
    m, width = x.shape
    check("x", x, (m, width), x.dtype, x.device)
    if reason := launch.unsupported(x.device, x.dtype, {}):
        raise ValueError(f"x: {reason}")
    check("head.weight", weight, (len(weight), width), x.dtype, x.device)
    check("targets", targets, (len(targets),), torch.int64, x.device)
    check("rows", rows, (len(targets),), torch.int64, x.device)


def _constants(size: int, width: int, part: int, tiles: Tiles) -> dict[str, int]:
    """Constants of `score_kernel`, but for UPCAST."""
    return {
        "V": size,
        "C": width,
        "PART": part,
        "ROWS": tiles.rows,
        "IDS": tiles.ids,
        "DEPTH": tiles.depth,
    }


unsupported_reason = probed("score")


def specializations() -> list[Specialization]:
    """The compilations for a vocabulary of 65536, of small and large models."""
    size = 65536
    found = []
    for width, dtype, tiles in ((768, "bf16", HALF), (4096, "bf16", HALF), (4096, "fp16", HALF), (768, "fp32", SINGLE)):
        part, num_parts = _parts(size, tiles)
        is_probe = width == 4096 and dtype == "bf16"
        common = {
            **pointers(dtype, "x", "weight"),
            **pointers("fp32", "peak", "total"),
            **pointers("i32", "first"),
            "m": "i32",
        }
        constants = _constants(size, width, part, tiles) | {"UPCAST": False}
        label = f"{dtype} C={width}"
        found.append(
            Specialization(label, score_kernel, common, constants, tiles.num_warps, tiles.num_stages, is_probe)
        )
        results = {**pointers("i64", "target", "row"), **pointers("fp64", "logprob"), **pointers("u8", "greedy")}
        constants = dict(V=size, C=width, NUM_PARTS=num_parts, BLOCK=BLOCK)
        label = f"combine, C={width}"
        found.append(Specialization(label, combine_kernel, common | results, constants, COMBINE_WARPS, 1, is_probe))
    return found


def _parts(size: int, tiles: Tiles) -> tuple[int, int]:
    """The number of ids of a part, a multiple of a tile's, and the number of parts."""
    part = launch.ceil_div(launch.ceil_div(size, SPLITS), tiles.ids) * tiles.ids
    return part, launch.ceil_div(size, part)
