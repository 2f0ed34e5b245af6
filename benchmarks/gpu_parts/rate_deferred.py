"""Rates of RWKV-7's recurrence in decode steps that defer state writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

from rwkv_batch.checks.calls import make_parameters, make_vectors
from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.models.rows import padding_rows

from ..deferred_writes import UPDATE_VECTORS, bytes_of_head
from .context import Context
from .record import Point

INTERVALS = (1, 2, 4)
"""Tokens of a sequence from one write of its state to the next."""


def run(context: Context, size: int, batches: Sequence[tuple[int, int]]) -> None:
    """Measures decode steps of these rows and heads with every interval."""
    for (rows, heads), state, interval, (backend, mark) in product(
        batches, ("float32", "float16"), INTERVALS, context.backends.items()
    ):
        name = f"wkv7{mark} state {state} B={rows} H={heads} write interval={interval}"
        context.record.measure(name, partial(_decode, context, (rows, heads, size), state, interval, backend))


def _decode(context: Context, sizes: tuple[int, int, int], state: str, interval: int, backend: str) -> Point:
    """Measures a step of B rows, of which every `interval`-th writes its state.

    Args:
        sizes: rows, heads, head size.
    """
    num_rows, heads, size = sizes
    num_rows = min(num_rows, 64) if context.is_dry else num_rows
    function, device = context.op("wkv7", DTYPES[state], backend, N=size), context.device
    num_bytes = num_rows * heads * bytes_of_head(size, DTYPES[state].itemsize, interval)
    sets = context.stopwatch.rotation(num_rows * heads * size * size * DTYPES[state].itemsize)
    vectors = make_vectors("wkv7", num_rows, heads * size, torch.bfloat16, device)
    parameters = make_parameters("wkv7", heads, size, device)
    states = torch.randn(num_rows, sets, heads, size, size, device=device, dtype=DTYPES[state])
    rows = padding_rows(num_rows, device)
    rows.slot_index.copy_(torch.randperm(num_rows, device=device))
    pending = torch.arange(num_rows, device=device) % interval
    rows.deferred.copy_(torch.where(pending == interval - 1, ~pending, pending))
    shape = (num_rows, sets, max(interval - 1, 1), heads, UPDATE_VECTORS, size)
    rings = 0.1 * torch.rand(shape, device=device)
    calls = [partial(function, **vectors, **parameters, state=states[:, i], rows=rows) for i in range(sets)]
    if interval > 1:
        calls = [partial(call, ring=rings[:, i]) for i, call in enumerate(calls)]
    seconds = context.stopwatch.calls(calls)
    return {
        "programs": num_rows * heads,
        "seconds": seconds,
        "bytes": num_bytes,
        "sets": sets,
        "share_of_copy": context.share_of_copy(num_bytes, seconds),
        "predicted_seconds": max(context.card.launch, num_bytes / context.card.bandwidth),
    }
