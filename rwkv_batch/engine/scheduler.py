"""The scheduler: plans which sequences run in the next step, and how many tokens of each. Counts only, no tensors.

A recurrent state has a fixed size. Admission is therefore "is a slot free?", and no sequence is ever preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .request import MIN_CHUNK
from .sequence import Sequence


class StepPlan(NamedTuple):
    """The slots of one step: first the sequences that decode, one token each, then those that read a prompt chunk."""

    decoding: np.ndarray
    """[D] int64 slots, ascending."""
    prefilling: np.ndarray
    """[K] int64 slots, in order of admission."""
    chunk_sizes: np.ndarray
    """[K] int64: prompt tokens that each of `prefilling` is fed, at least 1."""

    @property
    def num_sequences(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    @property
    def num_prompt_tokens(self) -> int:
        return int(self.chunk_sizes.sum())


class Scheduler:
    """Holds the queue and the progress of each slot, and plans steps.

    A sequence is in turn waiting, prefilling, decoding, draining and finished. The scheduler plans the next step before
    the results of the last one are read, so it counts launched tokens and never looks at tokens. A draining sequence
    has launched all of its `max_tokens` tokens, and its results are still in flight. A sequence that ends earlier, by a
    stop, is decoding until `finish` is called.

    Args:
        num_slots: P.
        max_batch_tokens: limit of a step's tokens. All decode rows come first, one token each; prompts share the rest.
        state_write_interval: n: a decoding sequence's state is written at every n-th of its own tokens.

    Attributes:
        position: [P] int64: how many tokens of its sequence each slot's state has seen, once all launched steps are
            done. All other counts of a sequence's tokens follow from this one.
        prompt_length, max_tokens: [P] int64, of the slot's sequence.
    """

    def __init__(self, num_slots: int, max_batch_tokens: int, state_write_interval: int = 1) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.state_write_interval = state_write_interval
        self.waiting: deque[Sequence] = deque()
        self.position = np.zeros(num_slots, np.int64)
        self.prompt_length = np.zeros(num_slots, np.int64)
        self.max_tokens = np.zeros(num_slots, np.int64)
        self._prefilling = np.zeros(0, np.int64)
        self._is_decoding = np.zeros(num_slots, bool)
        self._running: dict[int, Sequence] = {}

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Puts sequences at the end of the queue."""
        self.waiting.extend(sequences)

    def add_first(self, sequences: Iterable[Sequence]) -> None:
        """Puts sequences at the head of the queue: the children of a prefix, while its snapshot exists."""
        self.waiting.extendleft(reversed(list(sequences)))

    def sort_waiting(self) -> None:
        """Sorts the queue once the source has ended: the longest requests start first, so that the job's tail is short.

        The children of a prefix stay together.
        """
        groups: dict[object, list[tuple[int, Sequence]]] = {}
        for sequence in self.waiting:
            groups.setdefault(sequence.parent or sequence, []).append((-sequence.node.num_steps, sequence))
        for group in groups.values():
            group.sort(key=_first)
        longest_first = sorted(groups.values(), key=lambda group: group[0][0])
        self.waiting = deque(sequence for group in longest_first for _, sequence in group)

    def start(self, sequences: Iterable[Sequence]) -> None:
        """Takes in sequences that have been given their slots."""
        sequences = list(sequences)
        slots = np.array([sequence.slot for sequence in sequences], np.int64)
        self._running.update((sequence.slot, sequence) for sequence in sequences)
        self.position[slots] = [sequence.num_shared for sequence in sequences]
        self.prompt_length[slots] = [len(sequence.prompt) for sequence in sequences]
        self.max_tokens[slots] = [sequence.max_tokens for sequence in sequences]
        self._is_decoding[slots] = False
        self._prefilling = np.concatenate((self._prefilling, slots))

    def plan(self) -> StepPlan:
        """Plans the next step.

        Every prompt gets the same share of the step's tokens, but no more than it has left. Equal shares are fair, and
        they are fast: a recurrence runs token by token, so many rows with short chunks use a machine better than one
        row with a long chunk. Where equal shares would be shorter than MIN_CHUNK, the prompts get MIN_CHUNK tokens each
        in order of admission until the step is full, because each chunk also costs reading and writing a state.
        """
        decoding = np.flatnonzero(self._is_decoding)
        slots = self._prefilling
        if not len(slots):
            return StepPlan(decoding, slots, slots)
        left = self.prompt_length[slots] - self.position[slots]
        sizes = _shares(left, max(self.max_batch_tokens - len(decoding), 1))
        count = int(np.count_nonzero(sizes))
        return StepPlan(decoding, slots[:count], sizes[:count])

    def deferred(self, slots: np.ndarray) -> np.ndarray:
        """`Rows.deferred` of these slots [n] in the next step, [n] int64: -1 while a prompt is read.

        The ring holds what the sequence has decoded since its state was last written; a prompt chunk writes it.
        """
        if self.state_write_interval == 1:
            return np.full(len(slots), -1)
        decoded = self.position[slots] - self.prompt_length[slots]
        pending = decoded % self.state_write_interval
        writes = pending == self.state_write_interval - 1
        return np.where(decoded < 0, -1, np.where(writes, ~pending, pending))

    def advance(self, plan: StepPlan) -> np.ndarray:
        """Counts the tokens of a step that has been launched.

        Returns:
            Slots of the sequences that are complete with this step without sampling: the prompt is read, and no token
            is to be sampled.
        """
        self.position[plan.decoding] += 1
        self.position[plan.prefilling] += plan.chunk_sizes
        complete = plan.prefilling[self.position[plan.prefilling] == self.prompt_length[plan.prefilling]]
        sampled = np.concatenate((plan.decoding, complete))
        num_sampled = self.position[sampled] - self.prompt_length[sampled] + 1
        self._is_decoding[sampled] = num_sampled < self.max_tokens[sampled]
        if len(complete):
            slots = self._prefilling
            self._prefilling = slots[self.position[slots] < self.prompt_length[slots]]
        return complete[self.max_tokens[complete] == 0]

    def finish(self, slots: np.ndarray) -> None:
        """Forgets the sequences in these slots."""
        self._is_decoding[slots] = False
        if len(self._prefilling):
            self._prefilling = self._prefilling[~np.isin(self._prefilling, slots)]
        for slot in slots.tolist():
            del self._running[slot]

    def restart(self, num_slots: int, max_batch_tokens: int) -> Scheduler:
        """Makes a scheduler of another size. Running sequences are queued first, and start again from their prompts."""
        restarted = Scheduler(num_slots, max_batch_tokens, self.state_write_interval)
        restarted.add(Sequence(sequence.node) for sequence in self.running)
        restarted.add(self.waiting)
        return restarted

    def emptied(self, num_slots: int) -> Scheduler:
        """Makes a scheduler without sequences."""
        return Scheduler(num_slots, self.max_batch_tokens, self.state_write_interval)

    def sequence(self, slot: int) -> Sequence:
        """The running sequence that owns this slot."""
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
        """Tokens of the next step that the running sequences leave unused; negative if their prompts need more."""
        left = self.prompt_length[self._prefilling] - self.position[self._prefilling]
        return self.max_batch_tokens - int(left.sum()) - int(np.count_nonzero(self._is_decoding))

    @property
    def has_work(self) -> bool:
        """Whether a step can be launched: some sequence is prefilling or decoding."""
        return self.is_prefilling or bool(self._is_decoding.any())

    @property
    def is_prefilling(self) -> bool:
        """Whether the next step reads a prompt chunk."""
        return bool(len(self._prefilling))

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self._running)


def _first(pair: tuple[int, Sequence]) -> int:
    return pair[0]


def _shares(left: np.ndarray, budget: int) -> np.ndarray:
    """Divides `budget` tokens among n prompts: [n] int64, at most `left` [n] tokens each.

    Equal shares come from "water filling": prompts shorter than the share get all that they have left, and the others
    divide the rest equally. What remains of the division goes, one token each, to the first of the longer prompts.
    """
    floor = np.minimum(left, MIN_CHUNK)
    if floor.sum() >= budget:
        ends = np.minimum(np.cumsum(floor), budget)
        return np.diff(ends, prepend=0)
    if left.sum() <= budget:
        return left
    # needed[i]: the tokens given out if the share is ascending[i]. The prompts before i get all that they have left.
    ascending = np.sort(left)
    before = np.cumsum(ascending) - ascending
    needed = before + ascending * np.arange(len(left), 0, -1)
    cut = int(np.searchsorted(needed, budget, side="right"))  # prompts that are shorter than the share
    share, extra = divmod(budget - int(before[cut]), len(left) - cut)
    sizes = np.minimum(left, share)
    longer = np.flatnonzero(left > share)
    sizes[longer[:extra]] += 1
    return sizes
