"""The rows of one step: the slot, the length and the position of each, on the host and on the device."""

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
"""Selects rows of a tensor: a slice where the rows are consecutive (a view, no copy), else an int64 tensor."""


class RowTensors(NamedTuple):
    """The tensors of a step's rows that kernels read, all int32."""

    slot_index: Tensor
    """[B]: the slot of each row; -1 for padding."""
    cu_seqlens: Tensor
    """[B + 1]: row i has the packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
    position: Tensor
    """[B]: tokens of each row's sequence before this step."""
    token_rows: Tensor
    """[M]: the row of each packed token."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The B rows of a step, a ragged batch of M packed tokens: row i has lengths[i] consecutive tokens of one sequence.

    A row is a sequence that takes part in the step, with a chunk of its prompt or with the token sampled last. The
    tensors are made from the host's numbers when they are first read.

    Args:
        slots: slot of each row in the state pool, all different; or -1 for padding, which changes no state, and whose
            results are undefined.
        lengths: tokens of each row in this step, each at least 1; M is their sum.
        device: where the tensors are.
        positions: tokens of each row's sequence before this step; 0 for all where empty. The stochastic rounding of
            float16 states depends on them.
        sent: the tensors, where they are on the device already.
    """

    slots: Sequence[int] | np.ndarray
    lengths: Sequence[int] | np.ndarray
    device: torch.device
    positions: Sequence[int] | np.ndarray = ()
    sent: RowTensors | None = None

    @staticmethod
    def arrays(slots: np.ndarray, lengths: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        """The fields of `RowTensors`, in their order, as int32 arrays on the host."""
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
        """The same rows with tensors on another device."""
        return self if device == self.device else replace(self, device=device, sent=None)

    @property
    def slot_index(self) -> Tensor:
        """[B] int32: the slot of each row; -1 for padding."""
        return self._tensors.slot_index

    @property
    def cu_seqlens(self) -> Tensor:
        """[B + 1] int32: row i has the packed tokens cu_seqlens[i]:cu_seqlens[i + 1]."""
        return self._tensors.cu_seqlens

    @property
    def position(self) -> Tensor:
        """[B] int32: tokens of each row's sequence before this step."""
        return self._tensors.position

    @property
    def token_rows(self) -> Tensor:
        """[M] int32: the row of each packed token."""
        return self._tensors.token_rows

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @cached_property
    def num_tokens(self) -> int:
        return int(np.sum(self.lengths))

    @cached_property
    def is_decode(self) -> bool:
        """Every row has exactly one token."""
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
    def _scan_plan(self) -> _ScanPlan:
        return _plan_scan(self._slots, self._lengths, self.device)

    def scan(self, states: Sequence[Tensor], advance: Callable[..., None]) -> None:
        """Run a recurrence over all rows, one token of every row at a time, and update the states in place.

        The definitions of the recurrences are written with this. Padding rows are left out.

        Args:
            states: tensors [P, ...], a slot's state at its index. A float16 state is computed in float32 and rounded
                stochastically after every token.
            advance: called as advance(tokens, *rows) for each token position. `tokens` selects n packed tokens. Each of
                `rows` is a contiguous tensor [n, ...] with the states of the same rows, to be updated in place; its
                dtype is that of the state, or float32 for float16.
        """
        order, slots, steps = self._scan_plan
        is_half = [state.dtype == torch.float16 for state in states]
        rows = [
            state[slots].to(torch.float32 if half else state.dtype).contiguous()
            for state, half in zip(states, is_half, strict=True)
        ]
        halves = [row for row, half in zip(rows, is_half, strict=True) if half]
        position = self.position[order]
        for t, (active, tokens) in enumerate(steps):
            advance(tokens, *(row[:active] for row in rows))
            for row in halves:
                row[:active] = round_stochastically(row[:active], position[:active] + t)
        for state, row in zip(states, rows, strict=True):
            state[slots] = row.to(state.dtype)


class _ScanPlan(NamedTuple):
    """The order in which `Rows.scan` walks the tokens of the live rows, planned on the host.

    The longest rows come first, so that the rows with a token at position t are always the first ones.
    """

    order: Index
    """The live rows, the longest first; rows of equal length stay in order."""
    slots: Index
    """Their slots."""
    steps: list[tuple[int, Index]]
    """For each token position t: how many rows are longer than t, and the packed indices of their tokens there."""


def _plan_scan(slots: Sequence[int], lengths: Sequence[int], device: torch.device) -> _ScanPlan:
    """The scan plan of rows with these slots and lengths, with index tensors on the device."""
    order = sorted((i for i, slot in enumerate(slots) if slot >= 0), key=lambda i: -lengths[i])
    starts = list(accumulate(lengths, initial=0))
    steps: list[tuple[int, Index]] = []
    active = len(order)
    for t in range(lengths[order[0]] if order else 0):
        while lengths[order[active - 1]] <= t:
            active -= 1
        steps.append((active, _index([starts[i] + t for i in order[:active]], device)))
    return _ScanPlan(_index(order, device), _index([slots[i] for i in order], device), steps)


class RecordedRows(NamedTuple):
    """The rows of a recorded step: device buffers of fixed sizes, which are refilled before each replay.

    It has the tensors of `Rows` and no copies on the host, so that kernels can use it and definitions cannot. Rows with
    slot -1 are padding; they may have no tokens.
    """

    slot_index: Tensor
    """[B] int32."""
    position: Tensor
    """[B] int32."""
    cu_seqlens: Tensor
    """[B + 1] int32."""
    token_rows: Tensor
    """[M] int32."""
    is_decode: bool = False
    """Every row has exactly one token."""

    @property
    def num_rows(self) -> int:
        return len(self.slot_index)

    @property
    def num_tokens(self) -> int:
        return len(self.token_rows)

    @classmethod
    def decoding(cls, slot_index: Tensor, position: Tensor) -> RecordedRows:
        """Rows of one token each, with these slots and positions [B] int32."""
        ends = torch.arange(len(slot_index) + 1, dtype=torch.int32, device=slot_index.device)
        return cls(slot_index, position, ends, ends[:-1], is_decode=True)


def padding_rows(num_rows: int, device: torch.device) -> RecordedRows:
    """B decode rows that are all padding, in memory of their own; a caller writes slots and positions."""
    slots, positions = torch.tensor([[-1], [0]], dtype=torch.int32, device=device).repeat(1, num_rows)
    return RecordedRows.decoding(slots, positions)


def _index(values: list[int], device: torch.device) -> Index:
    """The index that selects `values`, in their order."""
    if not values:
        return slice(0, 0)
    if values == list(range(values[0], values[0] + len(values))):
        return slice(values[0], values[0] + len(values))
    return upload(values, torch.int64, device)
