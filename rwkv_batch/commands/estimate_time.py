"""The time of a job from the times of its steps: how many steps there are with how many sequences, and prompts."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIMULATED_WAVES = 3
"""The end of a job is simulated with this many sequences a slot, and the rest. Before it all slots are in use."""


@dataclass(frozen=True)
class Work:
    """The work of an engine.

    Args:
        computed_tokens: prompt tokens to compute, a shared prefix counted once.
        num_sequences: completions to sample; 0 for a job that only scores.
        lengths: tokens of some of these completions, which stand for all.
    """

    computed_tokens: float
    num_sequences: int
    lengths: Sequence[int]

    @property
    def mean_length(self) -> float:
        """Mean tokens of a completion."""
        return float(np.mean(self.lengths)) if len(self.lengths) else 0.0

    def divided_by(self, engines: int) -> Work:
        """The work of one of several engines."""
        return Work(self.computed_tokens / engines, -(-self.num_sequences // engines), self.lengths)


@dataclass(frozen=True)
class StepTimes:
    """How long an engine takes.

    Args:
        prompt_token: seconds that a prompt token adds.
        decode: sequences in a step → seconds of a step in which each samples one token. Between them a straight line.
    """

    prompt_token: float
    decode: Mapping[int, float]

    def seconds(self, work: Work, slots: int) -> float:
        """The seconds of some work with so many slots: its prompts, and every step that samples."""
        prompts = work.computed_tokens * self.prompt_token
        if not work.num_sequences or not self.decode:
            return prompts
        known = sorted(self.decode)
        steps = steps_of(work, slots)
        times = np.interp(list(steps), known, [self.decode[rows] for rows in known])
        return prompts + float(np.dot(times, list(steps.values())))


def steps_of(work: Work, slots: int) -> dict[int, float]:
    """How many steps have how many sequences: sequences → steps.

    Each slot that is free takes the next sequence. All slots are in use until the input ends; from then on sequences
    end one after the other, and fewer and fewer are left.
    """
    count = work.num_sequences
    simulated = min(count, SIMULATED_WAVES * slots + count % slots)
    order = np.random.default_rng(0).permutation(len(work.lengths))
    lengths = [max(1, int(work.lengths[order[index % len(order)]])) for index in range(simulated)]
    ends = [0] * min(slots, simulated)
    changes: dict[int, int] = {}
    for length in lengths:
        start = heapq.heappop(ends)
        changes[start] = changes.get(start, 0) + 1
        changes[start + length] = changes.get(start + length, 0) - 1
        heapq.heappush(ends, start + length)
    found: dict[int, float] = {}
    running, before = 0, 0
    for moment in sorted(changes):
        if running:
            found[running] = found.get(running, 0.0) + moment - before
        running, before = running + changes[moment], moment
    steady = work.mean_length * count - sum(lengths)
    if simulated < count and steady > 0:
        found[slots] = found.get(slots, 0.0) + steady / slots
    return found
