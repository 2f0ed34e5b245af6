"""The counters of each worker as events of the job's log, for the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from .tally import Tally

PERIOD_SECONDS = 15.0
"""The shortest time between two events of a worker, unless its slots have changed."""
SHARE = 1 / 30
"""The period grows to this share of the time so far, so that the log of a long job stays small."""


class WorkerLog:
    """Writes what each worker has done: now and then, as soon as its slots change, and at the end.

    Args:
        tally: the counters.
        log: writes an event, given its name and its fields.
    """

    def __init__(self, tally: Tally, log: Callable[..., None]) -> None:
        self._tally = tally
        self._log = log
        self._started = time.monotonic()
        self._due = self._started + PERIOD_SECONDS
        self._slots: dict[int, int] = {}  # of each worker, as its latest event has them

    def tick(self) -> None:
        """Writes the events that are due."""
        now = time.monotonic()
        if is_due := now >= self._due:
            self._due = now + max(PERIOD_SECONDS, (now - self._started) * SHARE)
        self._write(is_due)

    def end(self) -> None:
        """Writes an event of each worker."""
        self._write(True)

    def _write(self, is_due: bool) -> None:
        for index, worker in self._tally.workers():
            slots = 0 if worker.stats is None else worker.stats.max_batch_size
            if is_due or slots != self._slots.get(index):
                self._slots[index] = slots
                stats, status = worker.stats_so_far(), worker.status()
                unrecorded = dict(stats.unrecorded_steps)
                self._log(
                    "worker_progress", worker=index, **asdict(status), phases=worker.phases(), unrecorded=unrecorded
                )
