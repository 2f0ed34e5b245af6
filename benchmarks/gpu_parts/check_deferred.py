"""Checks that decode steps which defer state writes give the bits of steps that write every state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.recurrences import Batch, Heads, recurrence
from rwkv_batch.checks.target import Target
from rwkv_batch.models.rows import Rows

from .context import Context
from .record import Point

INTERVAL, STEPS = 4, 9


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    heads, num_rows = (Heads(1, 16), 3) if context.is_rehearsal else (Heads(32, 64), 200)
    for backend, mark in context.backends.items():
        for state in ("float32", "float16"):
            check = partial(_check, Target(backend, context.device), heads, num_rows, DTYPES[state])
            yield f"wkv7{mark} bfloat16 state {state}, deferred writes", check


def _check(target: Target, heads: Heads, num_rows: int, state_dtype: torch.dtype) -> Point:
    """Row i begins to defer at step i % INTERVAL, so that rows write their states at different steps."""
    batch = Batch((-1, *reversed(range(num_rows - 1))), (1,) * num_rows)
    call, function = recurrence(target, "wkv7", batch, heads, torch.bfloat16, state_dtype)
    checks, every, deferred = Checks(), call, call
    shape = (num_rows + 4, INTERVAL - 1, heads.number, 5, heads.size)
    ring = torch.full(shape, torch.nan, device=target.device)
    for t in range(STEPS):
        phases = [(t - i % INTERVAL) % INTERVAL if t >= i % INTERVAL else -1 for i in range(num_rows)]
        column = [~phase if phase == INTERVAL - 1 else phase for phase in phases]
        positions = (t,) * num_rows
        rows = Rows(batch.slots, batch.lengths, target.device, positions, column)
        wanted, pools = replace(every, rows=Rows(batch.slots, batch.lengths, target.device, positions)).run(function)
        got, own = replace(deferred, rows=rows).run(partial(function, ring=ring))
        every, deferred = replace(every, pools=pools), replace(deferred, pools=own)
        checks.same(f"output of step {t}", got[1:], wanted[1:])
        written = [slot + 1 for slot, entry in zip(batch.slots, column, strict=True) if slot >= 0 and entry < 0]
        for name, pool in pools.items():
            checks.same(f"{name} written at step {t}", own[name][written], pool[written])
    return checks.point()
