"""Checks of the ops that keep a state: the recurrences, and the token shift with its norm and interpolations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.blocks import Norm
from ..models.blocks import shift_lerp as shift_lerp_definition
from ..models.rows import Rows
from .calls import RECURRENCES, Call, make_call
from .comparisons import Checks, poisoned
from .limits import HALF_STATE_STEP_TOLERANCE, HALF_STATE_TOLERANCE, SEVERAL_ROUNDINGS, tolerance
from .target import Target


class Batch(NamedTuple):
    """Slots and lengths of rows; slot -1 is padding."""

    slots: Sequence[int]
    lengths: Sequence[int]


class Heads(NamedTuple):
    """The number of heads, and of channels of each."""

    number: int
    size: int


def batches(num_rows: int, longest: int) -> dict[str, Batch]:
    """Six rows of different lengths, and one token for each of `num_rows` rows; both with a row of padding."""
    shuffled = torch.randperm(num_rows + 20, generator=torch.Generator().manual_seed(1)).tolist()
    return {
        "ragged": Batch((4, 1, -1, 6, 0, 3), (1, longest // 5 + 1, 2, 3, longest, 5)),
        "decode": Batch([*shuffled[:2], -1, *shuffled[2 : num_rows - 1]], (1,) * num_rows),
    }


def recurrence(
    target: Target, variant: str, batch: Batch, heads: Heads, dtype: torch.dtype, state_dtype: torch.dtype
) -> tuple[Call, Callable[..., Tensor]]:
    """A call of a recurrence, and the function that the target has for it."""
    torch.manual_seed(0)
    call = make_call(variant, *batch, *heads, dtype, state_dtype, target.device)
    return call, target.op(call.op, dtype, state_dtype, N=heads.size)


def run(function: Callable[..., Tensor], call: Call) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a call, and the states that it leaves."""
    with poisoned():
        return call.run(function)


def check_recurrence(
    target: Target,
    variant: str,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    heads: Heads,
    found: Mapping[str, Batch],
) -> Checks:
    """Compares output and states with the definition's; all other memory must be unchanged."""
    checks, is_half = Checks(), state_dtype == torch.float16
    compare = checks.close_in_norm if is_half else checks.close

    for kind, batch in found.items():
        out_limit, state_limit = _limits(batch, dtype, state_dtype)
        call, function = recurrence(target, variant, batch, heads, dtype, state_dtype)
        out, pools = run(function, call)
        right_out, right_pools = call.on_host().run(RECURRENCES[call.op].definition)
        live = call.live_tokens
        compare(f"{kind} output", out[live], right_out[live.cpu()], out_limit)
        for name, pool in pools.items():
            slots = call.live_slots
            compare(f"{kind} {name}", pool[slots, 1], right_pools[name][slots, 1], state_limit)
            pool[slots, 1] = call.pools[name][slots, 1]
            checks.same(f"{kind} untouched {name}", pool, call.pools[name])
    return checks


def _limits(batch: Batch, dtype: torch.dtype, state_dtype: torch.dtype) -> tuple[float, float]:
    """Limits of the output's error and of the states' error."""
    out, state = (SEVERAL_ROUNDINGS * tolerance(computed) for computed in (dtype, torch.float32))
    if state_dtype != torch.float16:
        return out, state
    if max(batch.lengths) == 1:  # the output is read out of states that this call has not rounded
        return out, HALF_STATE_STEP_TOLERANCE
    return max(out, HALF_STATE_TOLERANCE), HALF_STATE_TOLERANCE


class Shift:
    """Calls of `shift_lerp` with one norm, one set of interpolations and one pool.

    Args:
        width: C.
        count: number of interpolations.
    """

    def __init__(self, target: Target, dtype: torch.dtype, width: int, count: int) -> None:
        torch.manual_seed(0)
        self.device, self.dtype, self.width = target.device, dtype, width
        self._function = target.op("shift_lerp", dtype, C=self.width)
        self.norm = Norm(1 + 0.1 * self._draw(), 0.1 * self._draw())
        self.norm = Norm(*(part.to(dtype) for part in self.norm))
        self.mix = torch.rand(count, self.width, device=self.device).to(dtype)
        self.pool = self._draw(9, 2).to(dtype)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, self.width, device=self.device)

    def tokens(self, rows: Rows) -> Tensor:
        """Inputs [M, C]."""
        return self._draw(rows.num_tokens).to(self.dtype) * 3

    def __call__(self, x: Tensor, rows: Rows, pool: Tensor) -> tuple[list[Tensor], Tensor]:
        """z, d and the interpolations, and the pool that the call leaves."""
        after = pool.clone()
        with poisoned():
            normed, delta, mixed = self._function(x, self.norm, self.mix, after[:, 1], rows, keep_parts=True)
        return [normed, delta, *mixed], after

    def definition(self, x: Tensor, rows: Rows) -> tuple[list[Tensor], Tensor]:
        """The result of a call with `pool`, computed by the definition in float64."""
        after, norm = self.pool.double(), Norm(*(part.double() for part in self.norm))
        normed, delta, mixed = shift_lerp_definition(
            x.double(), norm, self.mix.double(), after[:, 1], rows, keep_parts=True
        )
        return [part for part in (normed, delta, *mixed) if part is not None], after


def check_shift_lerp(target: Target, dtype: torch.dtype, width: int, count: int, longest: int) -> Checks:
    """Compares all results and the pool with the definition's; other slots must be unchanged.

    Args:
        width: C.
        count: number of interpolations.
        longest: tokens of the longest row.
    """
    checks, shift = Checks(), Shift(target, dtype, width, count)
    limit = SEVERAL_ROUNDINGS * tolerance(dtype)
    for kind, batch in {
        "ragged": Batch((4, 1, -1, 6), (1, 5, 2, longest)),
        "decode": Batch((8, -1, 2, 0, 5), (1,) * 5),
    }.items():
        rows = Rows(tuple(batch.slots), tuple(batch.lengths), shift.device)
        x = shift.tokens(rows)
        outs, after = shift(x, rows, shift.pool)
        right, right_pool = shift.definition(x, rows)
        live = torch.tensor(batch.slots)[rows.token_rows.long().cpu()] >= 0
        for part, got, want in zip(("z", "d", *range(count)), outs, right, strict=True):
            checks.close(f"C={width}, {kind} {part}", got[live], want[live], limit)
        checks.close(f"C={width}, {kind} shift", after, right_pool, limit)
        touched = [slot for slot in batch.slots if slot >= 0]
        after[touched, 1] = shift.pool[touched, 1]
        checks.same(f"C={width}, {kind} untouched", after, shift.pool)
    return checks
