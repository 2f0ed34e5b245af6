"""Who runs in the next step, and how many tokens of each: counts only, no tensors.

A state has a fixed size, so admission is "is a slot free?", and nothing is ever preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .request import MIN_CHUNK
from .sequence import Sequence


class Chunk(NamedTuple):
    """Prompt tokens of one sequence in a step."""

    sequence: Sequence
    num_tokens: int


class Plan(NamedTuple):
    """The rows of a step: first those that decode, one token each, then prompt chunks."""

    decoding: np.ndarray
    """[D] int64 slots, ascending."""
    chunks: list[Chunk]


class Scheduler:
    """Waiting → prefilling → decoding → draining → finished.

    Whether a sequence asks for another token is known before its latest one is: it ends, if nothing ends it sooner,
    with `max_tokens`. A draining sequence has asked for all, and waits for the results.

    Args:
        num_slots: P.
        max_batch_tokens: tokens a step may have. Decode rows come first, one token each, and always all of them.
            Prompts share the rest, in order of admission: a recurrence runs token by token, so many rows with short
            chunks keep a machine busier than one row with a long chunk.

    Attributes:
        position: [P] int64: tokens of its sequence that each slot's state has seen.
    """

    def __init__(self, num_slots: int, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.position = np.zeros(num_slots, np.int64)
        self._num_unplanned = 0
        self._remaining = np.zeros(num_slots, np.int64)
        self._is_decoding = np.zeros(num_slots, bool)
        self._running: dict[int, Sequence] = {}

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue behind the others."""
        self.waiting.extend(sequences)

    def add_first(self, sequences: Iterable[Sequence]) -> None:
        """Queue before the others: what shares a prefix runs while its state is there."""
        self.waiting.extendleft(reversed(list(sequences)))

    def sort_waiting(self) -> None:
        """Nothing new will be queued: what may take most steps goes first, so that little is left to run alone.

        The children of a prefix stay together.
        """
        groups: dict[object, list[Sequence]] = {}
        for sequence in self.waiting:
            groups.setdefault(sequence.parent or sequence, []).append(sequence)
        for group in groups.values():
            group.sort(key=lambda sequence: -sequence.work.num_steps)
        longest_first = sorted(groups.values(), key=lambda group: -group[0].work.num_steps)
        self.waiting = deque(sequence for group in longest_first for sequence in group)

    def next_waiting(self) -> Sequence:
        """Take the sequence that is next to get a slot."""
        return self.waiting.popleft()

    def start(self, sequence: Sequence) -> None:
        """A sequence has its slot."""
        self._running[sequence.slot] = sequence
        self.position[sequence.slot] = sequence.num_computed
        self.prefilling.append(sequence)
        self._num_unplanned += sequence.num_uncomputed

    def plan(self) -> Plan:
        """The rows of the next step."""
        decoding = np.flatnonzero(self._is_decoding)
        budget = max(self.max_batch_tokens - len(decoding), 1)
        sizes: list[int] = []
        for i, sequence in enumerate(self.prefilling):
            if budget <= 0:
                break
            share = max(budget // (len(self.prefilling) - i), MIN_CHUNK)
            sizes.append(min(sequence.num_uncomputed, share, budget))
            budget -= sizes[-1]
        for i, sequence in enumerate(self.prefilling if budget else ()):  # what those behind could not use
            more = min(sequence.num_uncomputed - sizes[i], budget)
            sizes[i] += more
            budget -= more
        return Plan(decoding, [Chunk(*pair) for pair in zip(self.prefilling, sizes, strict=False)])

    def advance(self, plan: Plan) -> list[Sequence]:
        """The plan's step has been launched.

        Returns:
            The sequences whose prompt is complete with it and which ask for no token.
        """
        self.position[plan.decoding] += 1
        self._remaining[plan.decoding] -= 1
        self._is_decoding[plan.decoding] = self._remaining[plan.decoding] > 0
        complete: list[Sequence] = []
        for sequence, num_tokens in plan.chunks:
            sequence.num_computed += num_tokens
            self._num_unplanned -= num_tokens
            self.position[sequence.slot] += num_tokens
            if sequence.num_uncomputed:
                continue
            if not sequence.max_tokens:
                complete.append(sequence)
            self._remaining[sequence.slot] = sequence.max_tokens - 1
            self._is_decoding[sequence.slot] = sequence.max_tokens > 1
        if plan.chunks:
            self.prefilling = [sequence for sequence in self.prefilling if sequence.num_uncomputed]
        return complete

    def finish(self, sequence: Sequence) -> None:
        """A sequence gives its slot back."""
        self._num_unplanned -= sequence.num_uncomputed
        self._is_decoding[sequence.slot] = False
        del self._running[sequence.slot]

    def restart(self, num_slots: int, max_batch_tokens: int) -> Scheduler:
        """A scheduler of another size with everything that runs at the head of the queue, as if it had not started."""
        again = Scheduler(num_slots, max_batch_tokens)
        again.add(Sequence(sequence.work, None) for sequence in self.running)
        again.add(self.waiting)
        return again

    @property
    def running(self) -> list[Sequence]:
        return list(self._running.values())

    @property
    def num_running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def has_tokens_to_spare(self) -> bool:
        """What runs leaves a part of the next step's tokens unused."""
        return self._num_unplanned + int(self._is_decoding.sum()) < self.max_batch_tokens

    @property
    def has_work(self) -> bool:
        """There is something to launch."""
        return bool(self.prefilling) or bool(self._is_decoding.any())

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self._running)
