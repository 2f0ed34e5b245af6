"""Small ragged batches for the recurrences, and what must come out: float64, one token at a time.

Cases have what trips kernels over: shuffled slots of a larger pool that other layers share, a padding row in the
middle, rows of different lengths, and states that are not symmetric, as no shape can tell a transposed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from versions import token_in_float64

from rwkv_batch.checks.calls import RECURRENCES, make_parameters, make_states, make_vectors, op_of
from rwkv_batch.models.rows import Rows

CPU = torch.device("cpu")
BACKENDS = ("triton", "cuda", "cpu")

Function = Callable[..., Tensor]
Vectors = dict[str, Tensor]


def every_pair(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> list[Any]:
    """All triples, as parameters of a test; the gate runs those in which each two values meet at least once.

    The others have the marker `soak`: `make kernels` runs them.

    Args:
        third: not longer than the other two.
    """
    return [
        pytest.param(a, b, c, marks=[] if (i + j) % len(third) == k else [pytest.mark.soak])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        for k, c in enumerate(third)
    ]


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Args:
        arguments: all but the states and `rows`.
        pools: state argument → [1 + P + 1, 2, ...]; the op gets the second layer of all slots but the outer two, which
            catch what is written to slot -1 and past the end.
    """

    variant: str
    arguments: dict[str, Any]
    pools: dict[str, Tensor]
    rows: Rows

    @property
    def op(self) -> str:
        return op_of(self.variant)

    @property
    def tokens(self) -> Tensor:
        """[M] int64: the packed tokens of rows that are not padding."""
        slots = torch.tensor(self.rows.slots)
        return (slots[self.rows.token_rows.long().cpu()] >= 0).nonzero()[:, 0]

    @property
    def states(self) -> Vectors:
        return {name: pool[1:-1, 1] for name, pool in self.pools.items()}

    def copy(self) -> Case:
        """The same with pools of its own."""
        return replace(self, pools={name: pool.clone() for name, pool in self.pools.items()})

    def to(self, device: str) -> Case:
        def move(x: Any) -> Any:
            if isinstance(x, tuple):
                return type(x)(*(move(field) for field in x))
            return x.to(device) if isinstance(x, Tensor) else x

        arguments = {name: move(x) for name, x in self.arguments.items()}
        pools = {name: pool.to(device) for name, pool in self.pools.items()}
        rows = Rows(self.rows.slots, self.rows.lengths, torch.device(device), self.rows.positions)
        return Case(self.variant, arguments, pools, rows)

    def pick(self, i: int, start: int, end: int, slot: int | None = None) -> Case:
        """Tokens start:end of row i alone, in its slot or another, which then holds the same state."""
        first = int(self.rows.cu_seqlens[i]) + start
        picked = self.copy()
        slot = self.rows.slots[i] if slot is None else slot
        for state in picked.states.values():
            state[slot] = state[self.rows.slots[i]]
        arguments = {
            name: x[first : first + end - start].contiguous() if is_per_token(x, self) else x
            for name, x in self.arguments.items()
        }
        rows = Rows((slot,), (end - start,), self.rows.device, (self.rows.positions[i] + start,))
        return replace(picked, arguments=arguments, rows=rows)


def is_per_token(x: Any, case: Case) -> bool:
    return isinstance(x, Tensor) and x.dim() == 2 and len(x) == case.rows.num_tokens


def make_case(
    variant: str,
    slots: Sequence[int] = (4, 1, -1, 6),
    lengths: Sequence[int] = (1, 4, 2, 3),
    num_heads: int = 2,
    size: int = 16,
    dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Case:
    """Random tensors in the ranges of trained models. Without heads the width is num_heads * size + 3."""
    positions = tuple(3 + 10 * i for i in range(len(slots)))
    rows = Rows(tuple(slots), tuple(lengths), device, positions)
    recurrence = RECURRENCES[op_of(variant)]
    heads = (num_heads, size) if recurrence.has_heads else (1, num_heads * size + 3)

    def pool(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(10, 2, *shape).to(device, dtype)

    vectors = make_vectors(variant, rows.num_tokens, math.prod(heads), dtype, device)
    inputs = vectors | make_parameters(variant, *heads, device)
    pools = make_states(variant, *heads, pool, state_dtype)
    for name, value in recurrence.fresh.items():
        pools[name][5] = value  # slot 4 holds a fresh sequence
    return Case(variant, inputs, pools, rows)


def run(function: Function, case: Case) -> tuple[Tensor, Case]:
    """Calls an op on a copy of the case. Elements of the output that it does not write are NaN.

    Returns:
        The output, and the copy with the states that the op has left.
    """
    after = case.copy()
    with patch("torch.empty_like", lambda x: torch.full_like(x, torch.nan)):
        out = function(**after.arguments, **after.states, rows=after.rows)
    return out, after


def expected(case: Case) -> tuple[Tensor, Vectors]:
    """The expected result of `run`, output and states, in float64; padding rows give zero, states are not rounded."""
    parameters = {name: in_float64(x) for name, x in case.arguments.items()}
    states = {name: state.cpu().double() for name, state in case.states.items()}
    per_token = [name for name, x in case.arguments.items() if is_per_token(x, case)]
    advance = token_in_float64(case.op)
    out = torch.zeros(case.rows.num_tokens, parameters[RECURRENCES[case.op].vectors[0]].shape[1], dtype=torch.float64)
    starts = case.rows.cu_seqlens.tolist()
    for i, slot in enumerate(case.rows.slots):
        for t in range(starts[i], starts[i + 1]) if slot >= 0 else ():
            token = {name: parameters[name][t] for name in per_token}
            own = {name: state[slot] for name, state in states.items()}
            out[t], new = advance(parameters | token, own)
            for name, x in new.items():
                states[name][slot] = x
    return out, states


def in_float64(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.cpu().double()
    if isinstance(x, tuple):
        return type(x)(*(in_float64(field) for field in x))
    return x
