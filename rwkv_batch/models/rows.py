"""The shape of one step: which rows there are, how long each is, and where its state lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..transfer import Uploader, upload
from .rounding import round_stochastically

Index = slice | Tensor
"""Selects rows of a tensor: a slice where they lie together (no copy), an int64 tensor otherwise."""


class RowTensors(NamedTuple):
    """What kernels read of the rows of a step, on their device; all int32."""

    slot_index: Tensor
    """[B]."""
    cu_seqlens: Tensor
    """[B + 1]: row i owns packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
    position: Tensor
    """[B]."""
    token_rows: Tensor
    """[M]: which row each packed token belongs to."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A ragged batch of B rows with M packed tokens.

    Args:
        slots: slot of each row in the state pool, no slot twice; -1 is padding: no state is touched, and what comes out
            for it means nothing.
        lengths: tokens of each row in this step, each at least 1; M is their sum.
        device: where the tensors live.
        positions: how many tokens of its sequence each row has behind it; what float16 states are rounded by. Without
            positions, 0 for each.
        sent: the same numbers on the device, where they are there already.
    """

    slots: Sequence[int] | np.ndarray
    lengths: Sequence[int] | np.ndarray
    device: torch.device
    positions: Sequence[int] | np.ndarray = ()
    sent: RowTensors | None = None

    @staticmethod
    def arrays(slots: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """The numbers of `RowTensors`, on the host, in its order."""
        ends = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        token_rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return slots.astype(np.int32), ends, positions.astype(np.int32), token_rows

    @cached_property
    def _tensors(self) -> RowTensors:
        if self.sent is not None:
            return self.sent
        positions = self.positions if len(self.positions) else np.zeros(self.num_rows)
        columns = (np.asarray(each, np.int64) for each in (self.slots, self.lengths, positions))
        return RowTensors(*Uploader(self.device).send(*self.arrays(*columns)))

    def on(self, device: torch.device) -> Rows:
        """The same rows, whose tensors are on another device."""
        return self if device == self.device else replace(self, device=device, sent=None)

    @property
    def slot_index(self) -> Tensor:
        """[B] int32."""
        return self._tensors.slot_index

    @property
    def cu_seqlens(self) -> Tensor:
        """[B + 1] int32: row i owns packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
        return self._tensors.cu_seqlens

    @property
    def position(self) -> Tensor:
        """[B] int32."""
        return self._tensors.position

    @property
    def token_rows(self) -> Tensor:
        """[M] int32: which row each packed token belongs to."""
        return self._tensors.token_rows

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @cached_property
    def num_tokens(self) -> int:
        return int(np.sum(self.lengths))

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
        return _index([i for i, slot in enumerate(self._slots) if slot >= 0], self.device)

    @cached_property
    def live_slots(self) -> Index:
        """The slots of the rows that are not padding."""
        return _index([slot for slot in self._slots if slot >= 0], self.device)

    @cached_property
    def _slots(self) -> list[int]:
        return np.asarray(self.slots, np.int64).tolist()

    @cached_property
    def _lengths(self) -> list[int]:
        return np.asarray(self.lengths, np.int64).tolist()

    @cached_property
    def _by_length(self) -> tuple[int, ...]:
        """Live rows, longest first; rows of equal length stay in order."""
        live = [i for i, slot in enumerate(self._slots) if slot >= 0]
        return tuple(sorted(live, key=lambda i: -self._lengths[i]))

    @cached_property
    def _scan_plan(self) -> list[tuple[int, Index]]:
        """For each token position: how many rows of `_by_length` have it, and the packed indices of those tokens."""
        lengths = self._lengths
        starts = list(accumulate(lengths, initial=0))
        order = self._by_length
        plan: list[tuple[int, Index]] = []
        active = len(order)
        for t in range(lengths[order[0]] if order else 0):
            while lengths[order[active - 1]] <= t:
                active -= 1
            plan.append((active, _index([starts[i] + t for i in order[:active]], self.device)))
        return plan

    @cached_property
    def _scan_slots(self) -> Index:
        return _index([self._slots[i] for i in self._by_length], self.device)

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
        self.numbers = torch.zeros(2, num_rows, dtype=torch.int32, device=device)
        """Slots and positions: what changes from step to step, in one tensor."""
        self.numbers[0] = -1
        self.slot_index, self.position = self.numbers
        self.cu_seqlens = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self.token_rows = self.cu_seqlens[:-1]


def _index(values: list[int], device: torch.device) -> Index:
    if not values:
        return slice(0, 0)
    if values == list(range(values[0], values[0] + len(values))):
        return slice(values[0], values[0] + len(values))
    return upload(values, torch.int64, device)
