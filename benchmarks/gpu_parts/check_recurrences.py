"""Checks of the ops that keep a state: the recurrences, and the token shift with its norm and interpolations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.blocks import shift_lerp as shift_lerp_definition
from rwkv_batch.models.rows import Rows

from .context import Context
from .device import poisoned
from .ops import DTYPES, LARGEST_ERROR, Checks, backends, op
from .record import Point
from .recurrences import DEFINITIONS, VARIANTS, Call, make_call

SAME_ROUNDING = 2e-3
"""Error of a float16 state, and of what is read out of it, against the definition, which rounds by the same draws:
rounding up or down may turn on a difference that float32 leaves."""


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    dtypes = ("bfloat16",) if context.is_rehearsal else DTYPES
    for backend, mark in backends(context.is_rehearsal).items():
        for variant in VARIANTS:
            for state in ("float32",) if variant == "wkv4" else ("float32", "float16"):
                for dtype in dtypes:
                    name = f"{variant}{mark} {dtype} state {state}"
                    for kind, batch in _batches(context).items():
                        check = partial(_recurrence, context, variant, *batch, DTYPES[dtype], DTYPES[state], backend)
                        yield f"{name}, {kind}", check
                check = partial(_to_the_bit, context, variant, DTYPES[state], backend)
                yield f"{variant}{mark} state {state}, to the bit", check
        for dtype in dtypes:
            for count in (6, 1):
                yield f"shift_lerp{mark} {dtype} {count}", partial(_shift_lerp, context, DTYPES[dtype], count, backend)


def _batches(context: Context) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
    """Kind → slots and lengths of its rows."""
    num_rows = 4 if context.is_rehearsal else 256
    shuffled = torch.randperm(num_rows + 20, generator=torch.Generator().manual_seed(1)).tolist()
    decode = [*shuffled[:2], -1, *shuffled[2 : num_rows - 1]], (1,) * num_rows
    if context.is_rehearsal:
        return {"ragged": ((4, 1, -1, 6), (1, 3, 2, 2)), "decode": decode}
    return {"ragged": ((4, 1, -1, 6, 0, 3), (1, 64, 2, 17, 300, 5)), "decode": decode}


def _make(
    context: Context,
    variant: str,
    slots: Sequence[int],
    lengths: Sequence[int],
    dtype: torch.dtype,
    state: torch.dtype,
    backend: str,
) -> tuple[Call, Callable[..., Tensor]]:
    torch.manual_seed(0)
    heads, size = (1, 16) if context.is_rehearsal else (12, 64)
    call = make_call(variant, slots, lengths, heads, size, dtype, state, context.device)
    return call, op(call.op, context.device, dtype, state, backend, N=size)


def _run(function: Callable[..., Tensor], call: Call) -> tuple[Tensor, dict[str, Tensor]]:
    with poisoned():
        return call.run(function)


def _recurrence(
    context: Context,
    variant: str,
    slots: Sequence[int],
    lengths: Sequence[int],
    dtype: torch.dtype,
    state: torch.dtype,
    backend: str,
) -> Point:
    """Output and states against the definition, in float32 on the host; all else is untouched."""
    call, function = _make(context, variant, slots, lengths, dtype, state, backend)
    out, pools = _run(function, call)
    right_out, right_pools = call.on_host().run(DEFINITIONS[call.op])
    checks, live = Checks(), call.live_tokens
    rounding = SAME_ROUNDING if state == torch.float16 else 0.0
    checks.close("output", out[live], right_out[live.cpu()], max(LARGEST_ERROR[dtype], rounding))
    for name, pool in pools.items():
        limit = max(LARGEST_ERROR[torch.float32], rounding)
        checks.close(name, pool[call.live_slots, 1], right_pools[name][call.live_slots, 1], limit)
        pool[call.live_slots, 1] = call.pools[name][call.live_slots, 1]
        checks.same(f"untouched {name}", pool, call.pools[name])
    return checks.point()


def _to_the_bit(context: Context, variant: str, state: torch.dtype, backend: str) -> Point:
    """A row is the same alone, in another slot, among others, and in two calls."""
    lengths = (2, 1, 4) if context.is_rehearsal else (40, 1, 70)
    call, function = _make(context, variant, (3, -1, 5), lengths, torch.bfloat16, state, backend)
    checks, end, cut = Checks(), lengths[2], lengths[2] // 2 + 1
    out, pools = _run(function, call)
    first, after_first = _run(function, call.pick(2, 0, cut, slot=5))
    second, after_both = _run(function, call.pick(2, cut, end, slot=5, pools=after_first))
    alone, elsewhere = _run(function, call.pick(2, 0, end, slot=1))
    again, _ = _run(function, call)
    start = lengths[0] + lengths[1]
    checks.same("cut in two", torch.cat((first, second)), out[start:])
    checks.same("alone in another slot", alone, out[start:])
    checks.same("the same call again", again[call.live_tokens], out[call.live_tokens])
    for name, pool in pools.items():
        checks.same(f"{name} cut in two", after_both[name][6], pool[6])
        checks.same(f"{name} in another slot", elsewhere[name][2], pool[6])
    return checks.point()


def _shift_lerp(context: Context, dtype: torch.dtype, count: int, backend: str) -> Point:
    device, width = context.device, 40 if context.is_rehearsal else 2048
    function = op("shift_lerp", device, dtype, backend=backend, C=width)
    torch.manual_seed(0)
    checks, longest, cut = Checks(), *((6, 2) if context.is_rehearsal else (300, 120))
    norm = Norm(1 + 0.1 * torch.randn(width, device=device), 0.1 * torch.randn(width, device=device))
    norm = Norm(*(x.to(dtype) for x in norm))
    mix = torch.rand(count, width, device=device).to(dtype)
    pool = torch.randn(9, 2, width, device=device).to(dtype)

    def call(x: Tensor, rows: Rows, pool: Tensor) -> tuple[list[Tensor], Tensor]:
        after = pool.clone()
        with poisoned():
            normed, delta, mixed = function(x, norm, mix, after[:, 1], rows, keep_parts=True)
        return [normed, delta, *mixed], after

    for name, slots, lengths in (
        ("ragged", (4, 1, -1, 6), (1, 5, 2, longest)),
        ("decode", (8, -1, 2, 0, 5), (1,) * 5),
    ):
        rows = Rows(slots, lengths, device)
        x = torch.randn(rows.num_tokens, width, device=device).to(dtype) * 3
        outs, after = call(x, rows, pool)
        right_pool = pool.double()
        right = shift_lerp_definition(
            x.double(), Norm(*(p.double() for p in norm)), mix.double(), right_pool[:, 1], rows, keep_parts=True
        )
        live = torch.tensor(slots)[rows.token_rows.long().cpu()] >= 0
        for part, got, want in zip(("z", "d", *range(count)), outs, (*right[:2], *right[2]), strict=True):
            assert want is not None
            checks.close(f"{name} {part}", got[live], want[live], LARGEST_ERROR[dtype])
        checks.close(f"{name} shift", after, right_pool, LARGEST_ERROR[dtype])
        touched = [slot for slot in slots if slot >= 0]
        after[touched, 1] = pool[touched, 1]
        checks.same(f"{name} untouched", after, pool)
    # The last row of the ragged batch, which is the longest, in two calls and alone.
    rows = Rows((4, 1, -1, 6), (1, 5, 2, longest), device)
    x = torch.randn(rows.num_tokens, width, device=device).to(dtype)
    whole, after = call(x, rows, pool)
    first, after_first = call(x[8 : 8 + cut].contiguous(), Rows((6,), (cut,), device), pool)
    second, after_both = call(x[8 + cut :].contiguous(), Rows((6,), (longest - cut,), device), after_first)
    for i, (a, b, c) in enumerate(zip(first, second, whole, strict=True)):
        checks.same(f"cut in two {i}", torch.cat((a, b)), c[8:])
    checks.same("shift cut in two", after_both[6], after[6])
    return checks.point()
