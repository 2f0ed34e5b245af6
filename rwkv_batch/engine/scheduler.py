"""Who runs in this step, and how many tokens each. Counts only: no tensors, no model.

A recurrent state has a fixed size, so admission is one question: is a slot free? Nothing is ever evicted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from .sequence import Sequence

MIN_CHUNK = 64
"""Prompt tokens that a row is fed at a time, where it has them: enough to make moving its state in and out cheap."""


class PlannedRow(NamedTuple):
    """One row of a step."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Waiting → running → finished.

    Args:
        max_batch_tokens: tokens a step may have. Decode rows come first, one token each, and always all of them.
            Prompts share the rest, in order of admission: a recurrence runs token by token, so many rows with short
            chunks keep a machine busier than one row with a long chunk.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue behind the others."""
        self.waiting.extend(sequences)

    def add_first(self, sequences: Iterable[Sequence]) -> None:
        """Queue before the others: what shares a prefix runs while its state is there."""
        self.waiting.extendleft(reversed(list(sequences)))

    def next_waiting(self) -> Sequence:
        """Take the sequence that is next to get a slot."""
        return self.waiting.popleft()

    def start(self, sequence: Sequence) -> None:
        """A sequence has its slot."""
        self.prefilling.append(sequence)

    def plan(self) -> list[PlannedRow]:
        """The rows of the next step."""
        rows = [PlannedRow(sequence, 1) for sequence in self.decoding]
        budget = max(self.max_batch_tokens - len(rows), 1)
        for i, sequence in enumerate(self.prefilling):
            if budget <= 0:
                break
            share = max(budget // (len(self.prefilling) - i), MIN_CHUNK)
            num_tokens = min(sequence.num_uncomputed, share, budget)
            rows.append(PlannedRow(sequence, num_tokens))
            budget -= num_tokens
        return rows

    def settle(self, finished: set[int]) -> None:
        """After a step: drop the sequences whose `id` is in `finished`; complete prompts decode from now on."""
        self.decoding = [s for s in self.decoding if id(s) not in finished]
        if self.prefilling:
            running = [s for s in self.prefilling if id(s) not in finished]
            self.decoding += [s for s in running if s.is_decoding]
            self.prefilling = [s for s in running if not s.is_decoding]

    def restart(self, max_batch_tokens: int) -> None:
        """Everything that runs goes back to the head of the queue, as if it had not started."""
        self.max_batch_tokens = max_batch_tokens
        again = [Sequence(sequence.work, None) for sequence in self.running]
        self.prefilling, self.decoding = [], []
        self.add_first(again)

    @property
    def running(self) -> list[Sequence]:
        return self.prefilling + self.decoding

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.prefilling or self.decoding)
