"""The shape of one step: which rows there are, how long each is, and where its state lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from .rounding import round_stochastically
from .upload import upload

Index = slice | Tensor
"""Selects rows of a tensor: a slice where they lie together (no copy), an int64 tensor otherwise."""


@dataclass(frozen=True)
class Rows:
    """A ragged batch of B rows with M packed tokens.

    Args:
        slots: slot of each row in the state pool, no slot twice; -1 is padding: no state is touched, and what comes out
            for it means nothing.
        lengths: tokens of each row in this step, each at least 1; M is their sum.
        device: where the tensors live.
        positions: how many tokens of its sequence each row has behind it; what float16 states are rounded by.
    """

    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    device: torch.device
    positions: tuple[int, ...] = ()

    @cached_property
    def slot_index(self) -> Tensor:
        """[B] int32."""
        return upload(self.slots, torch.int32, self.device)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """[B + 1] int32: row i owns packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
        return upload(list(accumulate(self.lengths, initial=0)), torch.int32, self.device)

    @cached_property
    def position(self) -> Tensor:
        """[B] int32."""
        return upload(self.positions or (0,) * self.num_rows, torch.int32, self.device)

    @cached_property
    def token_rows(self) -> Tensor:
        """[M] int32: which row each packed token belongs to."""
        return upload(np.repeat(np.arange(self.num_rows), self.lengths), torch.int32, self.device)

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def is_decode(self) -> bool:
        """Every row has one token."""
        return self.num_tokens == self.num_rows

    @cached_property
    def first(self) -> Tensor:
        """[B] int64: packed index of each row's first token."""
        return self.cu_seqlens[:-1].long()

    @cached_property
    def last(self) -> Tensor:
        """[B] int64: packed index of each row's last token."""
        return self.cu_seqlens[1:].long() - 1

    @cached_property
    def live(self) -> Index:
        """The rows that are not padding."""
        return _index([i for i, slot in enumerate(self.slots) if slot >= 0], self.device)

    @cached_property
    def live_slots(self) -> Index:
        """The slots of the rows that are not padding."""
        return _index([slot for slot in self.slots if slot >= 0], self.device)

    @cached_property
    def _by_length(self) -> tuple[int, ...]:
        """Live rows, longest first; rows of equal length stay in order."""
        live = [i for i, slot in enumerate(self.slots) if slot >= 0]
        return tuple(sorted(live, key=lambda i: -self.lengths[i]))

    @cached_property
    def _scan_plan(self) -> list[tuple[int, Index]]:
        """For each token position: how many rows of `_by_length` have it, and the packed indices of those tokens."""
        starts = list(accumulate(self.lengths, initial=0))
        order = self._by_length
        plan: list[tuple[int, Index]] = []
        active = len(order)
        for t in range(self.lengths[order[0]] if order else 0):
            while self.lengths[order[active - 1]] <= t:
                active -= 1
            plan.append((active, _index([starts[i] + t for i in order[:active]], self.device)))
        return plan

    @cached_property
    def _scan_slots(self) -> Index:
        return _index([self.slots[i] for i in self._by_length], self.device)

    def scan(self, states: Sequence[Tensor], advance: Callable[..., None]) -> None:
        """Walk all rows token by token, updating their states in place.

        Args:
            states: tensors [P, ...], one record a slot; float32, or float16, rounded stochastically after every token.
            advance: called as advance(tokens, *rows) for each token position, where `tokens` selects the packed tokens
                and each of `rows` is a contiguous tensor [n, ...] of the same rows' states, float32 where the state is
                a float, to be updated in place.
        """
        slots = self._scan_slots
        is_half = [state.dtype == torch.float16 for state in states]
        rows = [
            state[slots].to(torch.float32 if half else state.dtype) for state, half in zip(states, is_half, strict=True)
        ]
        rows = [row.contiguous() for row in rows]
        position = self.position[_index(list(self._by_length), self.device)]
        for t, (active, tokens) in enumerate(self._scan_plan):
            advance(tokens, *(row[:active] for row in rows))
            for row, half in zip(rows, is_half, strict=True):
                if half:
                    row[:active] = round_stochastically(row[:active], position[:active] + t)
        for state, row in zip(states, rows, strict=True):
            state[slots] = row.to(state.dtype)


class DecodeRows:
    """One token for each of B rows, in tensors that are filled anew before each step: what a captured step reads.

    It has the tensors of `Rows`, and no copies on the host: only kernels can use it.
    """

    is_decode = True

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.num_rows = self.num_tokens = num_rows
        self.slot_index = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
        self.position = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.cu_seqlens = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self.token_rows = self.cu_seqlens[:-1]


def _index(values: list[int], device: torch.device) -> Index:
    if not values:
        return slice(0, 0)
    if values == list(range(values[0], values[0] + len(values))):
        return slice(values[0], values[0] + len(values))
    return upload(values, torch.int64, device)
