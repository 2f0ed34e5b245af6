"""Checks of the ops that keep a state: the recurrences, and the token shift with its norm and interpolations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from rwkv_batch.checks.calls import VARIANTS, state_dtypes
from rwkv_batch.checks.cases import DTYPES
from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.recurrences import (
    Batch,
    Heads,
    Shift,
    batches,
    check_recurrence,
    check_shift_lerp,
    recurrence,
    run,
)
from rwkv_batch.checks.target import Target
from rwkv_batch.dtypes import dtype_name
from rwkv_batch.models.rows import Rows

from .context import Context
from .record import Point


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    dtypes = ("bfloat16",) if context.is_rehearsal else DTYPES
    found = batches(4, 3) if context.is_rehearsal else batches(256, 300)
    for backend, mark in context.backends.items():
        target = Target(backend, context.device)
        for variant in VARIANTS:
            for state_dtype in state_dtypes(variant):
                state = dtype_name(state_dtype)
                for dtype in dtypes:
                    name, common = f"{variant}{mark} {dtype} state {state}", (DTYPES[dtype], DTYPES[state])
                    for kind, batch in found.items():
                        check = partial(check_recurrence, target, variant, *common, _heads(context), {kind: batch})
                        yield f"{name}, {kind}", _as_point(check)
                check = partial(_to_the_bit, context, target, variant, DTYPES[state])
                yield f"{variant}{mark} state {state}, to the bit", _as_point(check)
        width, longest = (40, 6) if context.is_rehearsal else (2048, 300)
        for dtype in dtypes:
            for count in (6, 1):
                name = f"shift_lerp{mark} {dtype} {count}"
                yield name, _as_point(partial(check_shift_lerp, target, DTYPES[dtype], width, count, longest))
                yield f"{name}, cut in two", _as_point(partial(_cut, target, DTYPES[dtype], width, count, longest))


def _as_point(check: Callable[[], Checks]) -> Callable[[], Point]:
    return lambda: check().point()


def _heads(context: Context) -> Heads:
    return Heads(1, 16) if context.is_rehearsal else Heads(12, 64)


def _to_the_bit(context: Context, target: Target, variant: str, state: torch.dtype) -> Checks:
    """Checks that a row has the same bits alone, in another slot, among others, and in two calls."""
    batch = Batch((3, -1, 5), (2, 1, 4) if context.is_rehearsal else (40, 1, 70))
    call, function = recurrence(target, variant, batch, _heads(context), torch.bfloat16, state)
    checks, end, cut = Checks(), batch.lengths[2], batch.lengths[2] // 2 + 1
    out, pools = run(function, call)
    first, after_first = run(function, call.pick(2, 0, cut, slot=5))
    second, after_both = run(function, call.pick(2, cut, end, slot=5, pools=after_first))
    alone, elsewhere = run(function, call.pick(2, 0, end, slot=1))
    again, _ = run(function, call)
    start = batch.lengths[0] + batch.lengths[1]
    checks.same("cut in two", torch.cat((first, second)), out[start:])
    checks.same("alone in another slot", alone, out[start:])
    checks.same("the same call again", again[call.live_tokens], out[call.live_tokens])
    for name, pool in pools.items():
        checks.same(f"{name} cut in two", after_both[name][6], pool[6])
        checks.same(f"{name} in another slot", elsewhere[name][2], pool[6])
    return checks


def _cut(target: Target, dtype: torch.dtype, width: int, count: int, longest: int) -> Checks:
    """Checks the bits of the last row of a ragged batch, the longest, when it runs alone in two calls."""
    checks, shift, cut = Checks(), Shift(target, dtype, width, count), longest // 3
    rows = Rows((4, 1, -1, 6), (1, 5, 2, longest), shift.device)
    x = shift.tokens(rows)
    whole, after = shift(x, rows, shift.pool)
    first, after_first = shift(x[8 : 8 + cut].contiguous(), Rows((6,), (cut,), shift.device), shift.pool)
    second, after_both = shift(x[8 + cut :].contiguous(), Rows((6,), (longest - cut,), shift.device), after_first)
    for i, (a, b, c) in enumerate(zip(first, second, whole, strict=True)):
        checks.same(f"part {i}", torch.cat((a, b)), c[8:])
    checks.same("shift", after_both[6], after[6])
    return checks
