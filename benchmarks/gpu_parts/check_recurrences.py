"""Checks of the ops that keep a state: the recurrences, and the token shift with its norm and interpolations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.blocks import shift_lerp as shift_lerp_definition
from rwkv_batch.models.rows import Rows
from rwkv_batch.models.rwkv4 import wkv4
from rwkv_batch.models.rwkv5 import wkv5
from rwkv_batch.models.rwkv6 import wkv6
from rwkv_batch.models.rwkv7 import wkv7
from tests.kernels.kernel_cases import VARIANTS, Case, expected, make_case
from tests.kernels.kernel_cases import run as run_case

from .context import Context
from .device import poisoned
from .ops import DTYPES, LARGEST_ERROR, Checks, op
from .record import Point

DEFINITIONS: dict[str, Callable[..., Tensor]] = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}
ROUNDED_STATE = 1e-2
"""Error of a float16 state, rounded after every token, against float64, and of what is read out of it."""
SAME_ROUNDING = 2e-3
"""The same against the definition, which rounds alike: rounding up or down may turn on a difference of float32."""


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    for variant in VARIANTS:
        for state in ("float32",) if variant == "wkv4" else ("float32", "float16"):
            for dtype in DTYPES:
                name = f"{variant} {dtype} state {state}"
                yield f"{name}, ragged", partial(_ragged, context, variant, DTYPES[dtype], DTYPES[state])
                yield f"{name}, decode", partial(_decode, context, variant, DTYPES[dtype], DTYPES[state])
            yield f"{variant} state {state}, to the bit", partial(_to_the_bit, context, variant, DTYPES[state])
    for dtype in DTYPES:
        for count in (6, 1):
            yield f"shift_lerp {dtype} {count}", partial(_shift_lerp, context, DTYPES[dtype], count)


def _case(context: Context, variant: str, slots: Any, lengths: Any, dtype: torch.dtype, state: torch.dtype) -> Case:
    torch.manual_seed(0)
    heads, size = (1, 16) if context.is_rehearsal else (12, 64)
    case = make_case(variant, slots, lengths, heads, size, dtype, state, context.device)
    return _with_slots(case, max(*slots, 7) + 1)


def _with_slots(case: Case, num_slots: int) -> Case:
    """The same with pools of more slots, no two of which hold the same."""
    pools = {}
    for name, pool in case.pools.items():
        more = pool[torch.arange(num_slots, device=pool.device) % len(pool)]
        factor = 1 + 0.2 * torch.rand(num_slots, device=pool.device)
        factor[: len(pool)] = 1
        pools[name] = (more.float() * factor.view(-1, *(1,) * (pool.dim() - 1))).to(pool.dtype)
    return replace(case, pools=pools)


def _function(context: Context, case: Case, state: torch.dtype) -> Callable[..., Tensor]:
    return op(case.op, context.device, case.arguments["r"].dtype, state, N=16 if context.is_rehearsal else 64)


def _run(function: Callable[..., Tensor], case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    with poisoned():
        return run_case(function, case)


def _ragged(context: Context, variant: str, dtype: torch.dtype, state: torch.dtype) -> Point:
    lengths = (1, 3, 2, 2) if context.is_rehearsal else (1, 64, 2, 17, 128, 5)
    case = _case(context, variant, (4, 1, -1, 6, 0, 3)[: len(lengths)], lengths, dtype, state)
    out, pools = _run(_function(context, case, state), case)
    right_out, right_states = expected(case)
    checks, live = Checks(), [slot for slot in case.rows.slots if slot >= 0]
    is_half = state == torch.float16
    checks.close("output", out[case.tokens], right_out[case.tokens], max(LARGEST_ERROR[dtype], ROUNDED_STATE * is_half))
    for name, pool in pools.items():
        limit = ROUNDED_STATE if is_half else LARGEST_ERROR[torch.float32]
        checks.close(name, pool[live, 1], right_states[name][live], limit)
    _untouched(checks, case, pools)
    return checks.point()


def _untouched(checks: Checks, case: Case, pools: dict[str, Tensor]) -> None:
    """Other slots, and other layers of the same slots, are as they were."""
    live = [slot for slot in case.rows.slots if slot >= 0]
    for name, pool in pools.items():
        restored = pool.clone()
        restored[live, 1] = case.pools[name][live, 1]
        checks.same(f"untouched {name}", restored, case.pools[name])


def _decode(context: Context, variant: str, dtype: torch.dtype, state: torch.dtype) -> Point:
    """Many rows of one token, against the definition on the same device in float32."""
    num_rows = 4 if context.is_rehearsal else 256
    shuffled = torch.randperm(num_rows + 20, generator=torch.Generator().manual_seed(1)).tolist()
    slots = [5, *(slot for slot in shuffled if slot != 5)][:num_rows]
    slots[2] = -1
    case = _case(context, variant, slots, (1,) * num_rows, dtype, state)
    out, pools = _run(_function(context, case, state), case)
    right = replace(case, arguments={name: _float(x) for name, x in case.arguments.items()})
    right_out, right_pools = run_case(DEFINITIONS[case.op], right)
    checks, live = Checks(), [slot for slot in slots if slot >= 0]
    # Where a float16 state is rounded the other way, the read-out of a token feels it.
    limit = max(LARGEST_ERROR[dtype], SAME_ROUNDING if state == torch.float16 else 0)
    checks.close("output", out[case.tokens], right_out[case.tokens], limit)
    for name, pool in pools.items():
        limit = SAME_ROUNDING if state == torch.float16 else LARGEST_ERROR[torch.float32]
        checks.close(name, pool[live, 1], right_pools[name][live, 1], limit)
    _untouched(checks, case, pools)
    return checks.point()


def _float(x: Any) -> Any:
    if isinstance(x, tuple):
        return type(x)(*(_float(field) for field in x))
    return x.float() if isinstance(x, Tensor) else x


def _to_the_bit(context: Context, variant: str, state: torch.dtype) -> Point:
    """A row is the same alone, in another slot, among others, and in two calls."""
    lengths = (2, 1, 4) if context.is_rehearsal else (40, 1, 70)
    case = _case(context, variant, (3, -1, 5), lengths, torch.bfloat16, state)
    function = _function(context, case, state)
    checks, end, cut = Checks(), lengths[2], lengths[2] // 2 + 1
    out, pools = _run(function, case)
    first, after_first = _run(function, case.pick(2, 0, cut))
    second, after_both = _run(function, replace(case.pick(2, cut, end), pools=after_first))
    alone, elsewhere = _run(function, case.pick(2, 0, end, slot=1))
    again, _ = _run(function, case)
    start = lengths[0] + lengths[1]
    checks.same("cut in two", torch.cat((first, second)), out[start:])
    checks.same("alone in another slot", alone, out[start:])
    checks.same("the same call again", again[case.tokens], out[case.tokens])
    for name, pool in pools.items():
        checks.same(f"{name} cut in two", after_both[name][5], pool[5])
        checks.same(f"{name} in another slot", elsewhere[name][1], pool[5])
    return checks.point()


def _shift_lerp(context: Context, dtype: torch.dtype, count: int) -> Point:
    device, width = context.device, 40 if context.is_rehearsal else 2048
    function = op("shift_lerp", device, dtype, C=width)
    torch.manual_seed(0)
    checks = Checks()
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
        ("ragged", (4, 1, -1, 6), (1, 5, 2, 30)),
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
    rows = Rows((4, 1, -1, 6), (1, 5, 2, 30), device)
    x = torch.randn(rows.num_tokens, width, device=device).to(dtype)
    whole, after = call(x, rows, pool)
    first, after_first = call(x[8:20].contiguous(), Rows((6,), (12,), device), pool)
    second, after_both = call(x[20:].contiguous(), Rows((6,), (18,), device), after_first)
    for i, (a, b, c) in enumerate(zip(first, second, whole, strict=True)):
        checks.same(f"cut in two {i}", torch.cat((a, b)), c[8:])
    checks.same("shift cut in two", after_both[6], after[6])
    return checks.point()
