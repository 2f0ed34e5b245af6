"""The shape of one step: which rows there are, how long each is, and where its state lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Index = slice | Tensor
"""Selects rows of a tensor: a slice where they lie together (no copy), an int64 tensor otherwise."""


@dataclass(frozen=True)
class Rows:
    """A ragged batch of B rows with M packed tokens.

    Args:
        slots: slot of each row in the state pool, no slot twice; -1 is padding: no state is touched, and what comes out
            for it means nothing.
        lengths: tokens of each row in this step, each at least 1; M is their sum.
        device: where `slot_index` and `cu_seqlens` live.
    """

    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    device: torch.device

    @cached_property
    def slot_index(self) -> Tensor:
        """[B] int32."""
        return torch.tensor(self.slots, dtype=torch.int32, device=self.device)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """[B + 1] int32: row i owns packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
        starts = torch.zeros(len(self.lengths) + 1, dtype=torch.int32)
        torch.cumsum(torch.tensor(self.lengths, dtype=torch.int32), 0, out=starts[1:])
        return starts.to(self.device)

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
        starts = self.cu_seqlens.tolist()
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
            states: tensors [P, ...], one record a slot.
            advance: called as advance(tokens, *rows) for each token position, where `tokens` selects the packed tokens
                and each of `rows` is a contiguous tensor [n, ...] of the same rows' states, to be updated in place.
        """
        slots = self._scan_slots
        rows = [state[slots].contiguous() for state in states]
        for active, tokens in self._scan_plan:
            advance(tokens, *(row[:active] for row in rows))
        for state, row in zip(states, rows, strict=True):
            state[slots] = row


def _index(values: list[int], device: torch.device) -> Index:
    if not values:
        return slice(0, 0)
    if values == list(range(values[0], values[0] + len(values))):
        return slice(values[0], values[0] + len(values))
    return torch.tensor(values, dtype=torch.int64, device=device)
