"""Rates of the recurrences: a decode step by batch size, state and warps, and prompts token by token."""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from rwkv_batch.checks.calls import RECURRENCES, make_parameters, make_states, op_of
from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.rows import Rows, padding_rows
from rwkv_batch.triton_kernels.recurrence import NUM_WARPS

from .context import Context
from .record import Point

WARPS = (1, 2, 4, 8)
BATCHES = [(1, 12), (16, 12), (64, 12), (256, 12), (1024, 12), (4096, 12), (256, 32), (256, 64), (1024, 64)]
"""Rows and heads of a decode step."""


def run(context: Context) -> list[str]:
    measure, size = context.record.measure, 16 if context.is_rehearsal else 64
    batches = [(2, 1)] if context.is_rehearsal else BATCHES
    marks = context.backends
    for rows, heads in batches:
        for state in ("float32", "float16"):
            for backend, mark in marks.items():
                name = f"wkv7{mark} state {state} B={rows} H={heads}"
                measure(name, partial(_decode, context, "wkv7", rows, heads, size, state, backend=backend))
    for rows, heads in batches[-1:] if context.is_rehearsal else [(64, 12), (1024, 12), (256, 64)]:
        for state in ("float32", "float16"):
            for warps in WARPS[:1] if context.is_rehearsal else WARPS:
                name = f"wkv7 state {state} B={rows} H={heads} warps={warps}"
                measure(name, partial(_decode, context, "wkv7", rows, heads, size, state, warps))
    for variant in (op for op in RECURRENCES if op != "wkv7"):
        rows, heads = batches[0] if context.is_rehearsal else (1024, 12)
        for backend, mark in marks.items():
            name = f"{variant}{mark} state float32 B={rows} H={heads}"
            measure(name, partial(_decode, context, variant, rows, heads, size, "float32", backend=backend))
    shapes = ((1, 3, 1),) if context.is_rehearsal else ((1, 4096, 12), (64, 64, 12), (1, 4096, 64), (64, 64, 64))
    for rows, length, heads in shapes:
        for backend, mark in marks.items():
            name = f"wkv7{mark} prompts {rows} x {length} H={heads}"
            measure(name, partial(prompts, context, rows, length, heads, size, backend))
    return _table(context.record.points)


def _vectors(context: Context, op_name: str, tokens: int, heads: int, size: int) -> dict[str, torch.Tensor]:
    width, names = heads * size, RECURRENCES[op_name].vectors
    return {name: torch.randn(tokens, width, device=context.device).bfloat16() for name in names}


def _states(context: Context, op_name: str, slots: int, sets: int, heads: int, size: int, state: str) -> dict[str, Any]:
    """Makes states [P, sets, ...]; a set stands for a layer of the model."""

    def pool(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(slots, sets, *shape, device=context.device, dtype=dtype)

    return make_states(op_name, heads, size, pool, DTYPES[state])


def _decode(
    context: Context,
    name: str,
    num_rows: int,
    heads: int,
    size: int,
    state: str,
    warps: int | None = None,
    backend: str = "triton",
) -> Point:
    """Measures a decode step: one token for each row. Every call of a rotation has its own states, like a layer."""
    function = context.op(name, DTYPES[state], backend, N=size)
    num_rows = min(num_rows, 64) if context.is_dry else num_rows
    numbers = sum(map(math.prod, RECURRENCES[name].states(heads, size).values()))
    state_bytes = 2 * num_rows * numbers * DTYPES[state].itemsize
    num_bytes = state_bytes + (len(RECURRENCES[name].vectors) + 1) * num_rows * heads * size * 2
    sets = context.stopwatch.rotation(state_bytes)
    vectors, parameters = (
        _vectors(context, name, num_rows, heads, size),
        make_parameters(name, heads, size, context.device),
    )
    states = _states(context, name, num_rows, sets, heads, size, state)
    rows = padding_rows(num_rows, context.device)
    rows.slot_index.copy_(torch.randperm(num_rows, device=context.device))
    calls = [
        partial(function, **vectors, **parameters, **{key: x[:, i] for key, x in states.items()}, rows=rows)
        for i in range(sets)
    ]
    with patch.dict(NUM_WARPS, {size: warps} if warps else {}):
        seconds = context.stopwatch.calls(calls)
    return {
        "programs": num_rows * heads,
        "seconds": seconds,
        "bytes": num_bytes,
        "sets": sets,
        "share_of_copy": context.share_of_copy(num_bytes, seconds),
        "predicted_seconds": max(context.card.launch, num_bytes / context.card.bandwidth),
    }


def prompts(context: Context, num_rows: int, length: int, heads: int, size: int, backend: str) -> Point:
    """Measures prompts of one length. The state stays in registers, so the tokens of a row determine the time."""
    function = context.op("wkv7", backend=backend, N=size)
    length = min(length, 8) if context.is_dry else length
    rows = Rows(tuple(range(num_rows)), (length,) * num_rows, context.device)
    vectors = _vectors(context, "wkv7", rows.num_tokens, heads, size)
    parameters = make_parameters("wkv7", heads, size, context.device)
    states = _states(context, "wkv7", num_rows, 2, heads, size, "float32")
    _ = rows.slot_index, rows.cu_seqlens, rows.position
    call = partial(function, **vectors, **parameters, state=states["state"][:, 0], rows=rows)
    seconds = context.stopwatch.calls([call] * 2)
    card, tokens = context.card, rows.num_tokens
    arithmetic = tokens * heads * size * size * 7 / card.lane_rate
    return {
        "seconds": seconds,
        "seconds_per_token_of_a_row": seconds / length,
        "tokens_per_second": tokens / seconds,
        "predicted_seconds": max(arithmetic, length * card.token_latency),
    }


def _table(points: dict[str, Point]) -> list[str]:
    rows: list[list[str]] = []
    by_warps: dict[str, list[str]] = {}
    for name, point in points.items():
        if op_of(name.split()[0].partition("/")[0]) not in RECURRENCES:
            continue
        what, _, warps = name.partition(" warps=")
        predicted = f"{point['predicted_seconds'] / point['seconds']:.0%}"
        if warps:
            by_warps.setdefault(what, []).append(f"{warps}: {point['share_of_copy']:.0%}")
        elif "bytes" in point:
            rate = f"{point['bytes'] / point['seconds'] / 1e9:,.0f} GB/s"
            rows.append([name, f"{1e6 * point['seconds']:,.1f}", rate, f"{point['share_of_copy']:.0%}", predicted])
        else:
            rate = f"{1e9 * point['seconds_per_token_of_a_row']:,.0f} ns/token"
            rows.append([name, f"{1e6 * point['seconds']:,.1f}", rate, "", predicted])
    lines = format_lines(["recurrences", "us", "rate", "of copy", "predicted / measured"], rows)
    return [*lines, *(f"{what}: of copy by warps, {', '.join(shares)}" for what, shares in by_warps.items())]
