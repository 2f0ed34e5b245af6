"""What the engine has done so far, and where its time went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from .scheduler import StepPlan

NUM_BUCKETS = 20


class Occupancy:
    """Share of the slots in use: its mean, and its course in buckets of equally many steps.

    There are at most twice `NUM_BUCKETS`: where one more would be needed, neighbours become one.

    Attributes:
        steps_per_bucket: a power of two; the last bucket may have fewer.
    """

    def __init__(self) -> None:
        self.steps_per_bucket = 1
        self._sums: list[float] = []
        self._num_steps = 0
        self._total = 0.0

    def add(self, share: float) -> None:
        """Count one step."""
        if self._num_steps == 2 * NUM_BUCKETS * self.steps_per_bucket:
            joined = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
            self._sums, self.steps_per_bucket = joined, 2 * self.steps_per_bucket
        # A bucket is there already where an exception, such as Ctrl-C, has come between its beginning and its step.
        if self._num_steps == len(self._sums) * self.steps_per_bucket:
            self._sums.append(0.0)
        self._sums[-1] += share
        self._num_steps += 1
        self._total += share

    @property
    def mean(self) -> float:
        """Over all steps; 0 before the first one."""
        return self._total / self._num_steps if self._num_steps else 0.0

    @property
    def course(self) -> list[float]:
        """The mean of each bucket, in order."""
        width, last = self.steps_per_bucket, (self._num_steps - 1) % self.steps_per_bucket + 1
        return [total / width for total in self._sums[:-1]] + [total / last for total in self._sums[-1:]]

    def describe(self) -> dict[str, Any]:
        """For a report."""
        course = [round(share, 4) for share in self.course]
        return {"mean": round(self.mean, 4), "steps_per_bucket": self.steps_per_bucket, "course": course}


@dataclass
class EngineStats:
    """Counters since the engine was built; times in seconds."""

    max_batch_size: int
    max_batch_tokens: int
    running: int = 0
    """Slots in use in the latest step."""
    steps: int = 0
    row_steps: int = 0
    """Rows of all steps."""
    recorded_steps: int = 0
    """Steps that were replayed from a recording; on a CPU, those that would be on a CUDA device."""
    transfers: int = 0
    """From the host to the device, those of admission included."""
    step_tokens: int = 0
    """Tokens of all steps: prompt tokens, and one for each row that decodes."""
    requested_tokens: int = 0
    """Prompt tokens of all requests that have started, as if nothing were shared."""
    prompt_tokens: int = 0
    """Prompt tokens computed."""
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    """What prompts took: of the time of each forward pass, their share of its tokens."""
    schedule_seconds: float = 0.0
    """Planning, and building the step's tensors."""
    model_seconds: float = 0.0
    """Forward pass, logits and scores."""
    sample_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Waiting for sampled tokens to arrive on the host."""
    commit_seconds: float = 0.0
    """Appending tokens, stop strings, finishing."""
    prompt_share: float = 0.0
    """Part of the latest step's tokens that are prompt tokens."""
    occupancy: Occupancy = field(default_factory=Occupancy)

    def count(self, plan: StepPlan, slots_in_use: int) -> None:
        """Count one step's rows and tokens."""
        prompt_tokens = plan.num_prompt_tokens
        self.running = slots_in_use
        self.steps += 1
        self.row_steps += plan.num_sequences
        self.prompt_tokens += prompt_tokens
        self.step_tokens += prompt_tokens + len(plan.decoding)
        self.prompt_share = prompt_tokens / (prompt_tokens + len(plan.decoding))
        self.occupancy.add(slots_in_use / self.max_batch_size)

    @contextmanager
    def timed_forward(self) -> Iterator[None]:
        """A forward pass takes place inside, and before the end its step has been counted."""
        start = perf_counter()
        yield
        self.prompt_seconds += self.prompt_share * (perf_counter() - start)

    @property
    def saved_seconds(self) -> float:
        """What sharing prefixes has saved: an estimate, prompt tokens not computed × measured seconds of one."""
        saved = max(self.requested_tokens - self.prompt_tokens, 0)
        return saved * self.prompt_seconds / self.prompt_tokens if saved and self.prompt_tokens else 0.0

    def clock(self) -> Clock:
        """Start timing the phases of a step."""
        return Clock(self)


class Clock:
    """Adds the time between laps to the phase that each lap names."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        now = perf_counter()
        setattr(self._stats, phase, getattr(self._stats, phase) + now - self._last)
        self._last = now
