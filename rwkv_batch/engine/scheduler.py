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


class StepPlan(NamedTuple):
    """The sequences of a step, by slot: first those that decode, one token each, then prompt chunks."""

    decoding: np.ndarray
    """[D] int64 slots, ascending."""
    prefilling: np.ndarray
    """[K] int64 slots, in order of admission."""
    chunk_sizes: np.ndarray
    """[K] int64: prompt tokens of each, at least 1."""

    @property
    def num_sequences(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    @property
    def num_prompt_tokens(self) -> int:
        return int(self.chunk_sizes.sum())


class Scheduler:
    """Waiting → prefilling → decoding → draining → finished.

    Whether a sequence asks for another token is known before its latest one is: it ends, if nothing ends it sooner,
    with `max_tokens`. A draining sequence has asked for all, and waits for the results.

    Args:
        num_slots: P.
        max_batch_tokens: tokens a step may have. Decode rows come first, one token each, and always all of them.
            Prompts share the rest: a recurrence runs token by token, so many rows with short chunks keep a machine
            busier than one row with a long chunk.

    Attributes:
        position: [P] int64: tokens of its sequence that each slot's state has seen, once all launched steps are done.
            All other counts of a sequence's tokens follow from this one.
        prompt_length, max_tokens: [P] int64, of the slot's sequence.
    """

    def __init__(self, num_slots: int, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.position = np.zeros(num_slots, np.int64)
        self.prompt_length = np.zeros(num_slots, np.int64)
        self.max_tokens = np.zeros(num_slots, np.int64)
        self._prefilling = np.zeros(0, np.int64)
        self._is_decoding = np.zeros(num_slots, bool)
        self._running: dict[int, Sequence] = {}

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue behind the others."""
        self.waiting.extend(sequences)

    def add_first(self, sequences: Iterable[Sequence]) -> None:
        """Queue before the others: what shares a prefix runs while its state is there."""
        self.waiting.extendleft(reversed(list(sequences)))

    def sort_waiting(self) -> None:
        """The source has ended: what may take most steps goes first, so that the tail of the job is short.

        The children of a prefix stay together.
        """
        groups: dict[object, list[tuple[int, Sequence]]] = {}
        for sequence in self.waiting:
            groups.setdefault(sequence.parent or sequence, []).append((-sequence.work.num_steps, sequence))
        for group in groups.values():
            group.sort(key=_first)
        longest_first = sorted(groups.values(), key=lambda group: group[0][0])
        self.waiting = deque(sequence for group in longest_first for _, sequence in group)

    def start(self, sequences: Iterable[Sequence]) -> None:
        """These sequences have their slots."""
        sequences = list(sequences)
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        self._running.update((sequence.slot, sequence) for sequence in sequences)
        self.position[slots] = [sequence.num_shared for sequence in sequences]
        self.prompt_length[slots] = [len(sequence.prompt) for sequence in sequences]
        self.max_tokens[slots] = [sequence.max_tokens for sequence in sequences]
        self._is_decoding[slots] = False
        self._prefilling = np.concatenate((self._prefilling, slots))

    def plan(self) -> StepPlan:
        """The sequences of the next step.

        Every prompt gets the same share, but no more than it has left. Where the shares would be under MIN_CHUNK
        tokens, prompts get MIN_CHUNK each in order of admission, until the step is full.
        """
        decoding = np.flatnonzero(self._is_decoding)
        slots = self._prefilling
        if not len(slots):
            return StepPlan(decoding, slots, slots)
        left = self.prompt_length[slots] - self.position[slots]
        sizes = _shares(left, max(self.max_batch_tokens - len(decoding), 1))
        count = int(np.count_nonzero(sizes))
        return StepPlan(decoding, slots[:count], sizes[:count])

    def advance(self, plan: StepPlan) -> np.ndarray:
        """The plan's step has been launched.

        Returns:
            Slots of the sequences whose prompt is complete with this step and which ask for no token.
        """
        self.position[plan.decoding] += 1
        self.position[plan.prefilling] += plan.chunk_sizes
        complete = plan.prefilling[self.position[plan.prefilling] == self.prompt_length[plan.prefilling]]
        sampled = np.concatenate((plan.decoding, complete))
        asked = self.position[sampled] - self.prompt_length[sampled] + 1
        self._is_decoding[sampled] = asked < self.max_tokens[sampled]
        if len(complete):
            slots = self._prefilling
            self._prefilling = slots[self.position[slots] < self.prompt_length[slots]]
        return complete[self.max_tokens[complete] == 0]

    def finish(self, slots: np.ndarray) -> None:
        """The sequences in these slots give them back."""
        self._is_decoding[slots] = False
        if len(self._prefilling):
            self._prefilling = self._prefilling[~np.isin(self._prefilling, slots)]
        for slot in slots.tolist():
            del self._running[slot]

    def restart(self, num_slots: int, max_batch_tokens: int) -> Scheduler:
        """A scheduler of another size. Running sequences are queued first, and start again from their prompts."""
        again = Scheduler(num_slots, max_batch_tokens)
        again.add(Sequence(sequence.work) for sequence in self.running)
        again.add(self.waiting)
        return again

    def sequence(self, slot: int) -> Sequence:
        """The sequence that owns a slot."""
        return self._running[slot]

    @property
    def running(self) -> list[Sequence]:
        return list(self._running.values())

    @property
    def num_running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def spare_tokens(self) -> int:
        """How many tokens of the next step are unused by what runs; negative where what runs has more to feed."""
        left = self.prompt_length[self._prefilling] - self.position[self._prefilling]
        return self.max_batch_tokens - int(left.sum()) - int(np.count_nonzero(self._is_decoding))

    @property
    def has_work(self) -> bool:
        """There is something to launch."""
        return bool(len(self._prefilling)) or bool(self._is_decoding.any())

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self._running)


def _first(pair: tuple[int, Sequence]) -> int:
    return pair[0]


def _shares(left: np.ndarray, budget: int) -> np.ndarray:
    """How `budget` tokens are divided among prompts that have `left` tokens each, in order: [n] int64."""
    floor = np.minimum(left, MIN_CHUNK)
    if floor.sum() >= budget:
        ends = np.minimum(np.cumsum(floor), budget)
        return np.diff(ends, prepend=0)
    if left.sum() <= budget:
        return left
    # The largest share that fits for all: prompts shorter than it get what they have, in order of length.
    ascending = np.sort(left)
    before = np.cumsum(ascending) - ascending
    needed = before + ascending * np.arange(len(left), 0, -1)
    cut = int(np.searchsorted(needed, budget, side="right"))
    share, extra = divmod(budget - int(before[cut]), len(left) - cut)
    sizes = np.minimum(left, share)
    longer = np.flatnonzero(left > share)
    sizes[longer[:extra]] += 1
    return sizes
