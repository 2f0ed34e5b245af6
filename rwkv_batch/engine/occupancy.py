"""How full the engine was, step by step, in a few numbers however many steps there are."""

from __future__ import annotations

from typing import Any

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
