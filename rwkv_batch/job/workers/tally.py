"""The counters of a job that several workers serve, of all of them together and of each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...engine.stats import EngineStats
from ..output.writer import Counts
from ..plan import Unit
from ..report.run_status import RunStatus
from .messages import Begun, Committed, Served, Status


@dataclass
class WorkerTally:
    """The counters of one worker in this run. A process that takes the place of an ended one goes on with them.

    Args:
        counts: rows that it has finished in this run, also those that are lost and served again.
        stats: of its engine; None while no model is loaded.
        disk_seconds: how long its engine has waited for the disk.
        ended: the counters of the engines of earlier processes.
        seconds: for how long its engines were there, up to the latest message.
        since: when the present engine was there, in seconds of the host's clock.
        earlier: `seconds` before that engine.
    """

    counts: Counts = field(default_factory=Counts)
    stats: EngineStats | None = None
    disk_seconds: float = 0.0
    ended: list[EngineStats] = field(default_factory=list)
    seconds: float = 0.0
    since: float = field(default_factory=time.monotonic)
    earlier: float = 0.0

    def start(self) -> None:
        """A process has loaded the model."""
        self.since, self.earlier = time.monotonic(), self.seconds

    def hear(self, message: Status) -> None:
        """Takes in the counters of the present process."""
        if message.stats is not None:
            self.seconds = self.earlier + time.monotonic() - self.since
        self.stats = message.stats
        self.counts.wait_seconds += message.disk_seconds - self.disk_seconds
        self.disk_seconds = message.disk_seconds

    def end(self) -> None:
        """The process has ended: its engine has no slots any more."""
        if self.stats is not None:
            self.ended.append(replace(self.stats, running=0, max_batch_size=0))
        self.stats, self.disk_seconds = None, 0.0

    @property
    def engines(self) -> list[EngineStats]:
        """The counters of the engines of all its processes."""
        return [*self.ended, *([] if self.stats is None else [self.stats])]

    def stats_so_far(self) -> EngineStats:
        """The counters of the engines of all its processes together."""
        return together(self.engines)

    def status(self) -> RunStatus:
        """The counters as those of a run of its own."""
        return RunStatus.of(self.seconds, self.counts, self.stats_so_far())

    def phases(self) -> dict[str, float]:
        """The seconds of each phase."""
        phases = {**self.stats_so_far().seconds(), "write": self.counts.wait_seconds}
        return {name: round(seconds, 3) for name, seconds in phases.items()}


class Tally:
    """Adds up what workers say.

    Args:
        finished: rows of the units that have parts already.

    Attributes:
        counts: numbers of rows of all units together.
    """

    def __init__(self, finished: int) -> None:
        self.counts = Counts()
        self.counts.resume(finished)
        self._open: dict[int, list[int]] = {}  # unit → its rows that are finished, and that are committed
        self._known: set[int] = set()  # units that a worker has begun in this run
        self._workers: dict[int, WorkerTally] = {}  # by the number of the worker

    def begin(self, message: Begun) -> None:
        """A worker begins a unit, or some rows of it."""
        if message.unit not in self._known:
            self._known.add(message.unit)
            self.counts.resumed += message.committed
        self._set(message.unit, message.committed, message.committed)

    def serve(self, unit: int, rows: int) -> None:
        """So many rows of a unit are finished."""
        if unit in self._open:
            finished, committed = self._open[unit]
            self._set(unit, finished + rows, committed)

    def add(self, index: int, message: Served) -> None:
        """Adds what is counted once in a run, also for rows that are lost and served again."""
        own = self._worker(index).counts
        own.done += len(message.rows)
        for counts in (own, self.counts):
            counts.errors += message.errors
            counts.scored_tokens += message.scored_tokens
        self.counts.lengths.add(message.lengths)

    def commit(self, index: int, message: Committed) -> None:
        """So many rows of a unit are committed."""
        self._worker(index).counts.committed += message.rows
        if message.unit in self._open:
            finished, committed = self._open[message.unit]
            self._set(message.unit, finished, committed + message.rows)

    def publish(self, unit: Unit) -> None:
        """All rows of a unit are committed."""
        self._set(unit.index, unit.num_rows, unit.num_rows)
        del self._open[unit.index]

    def lose(self, unit: int) -> None:
        """The worker of a unit has ended: rows that are not committed have to be served again."""
        if unit in self._open:
            self._set(unit, self._open[unit][1], self._open[unit][1])

    def start(self, index: int) -> None:
        """A worker has loaded the model."""
        self._worker(index).start()

    def hear(self, index: int, message: Status) -> bool:
        """Notes the counters of a worker. Returns whether its engine has made a step since the last time."""
        worker = self._worker(index)
        before = worker.stats
        worker.hear(message)
        self.counts.wait_seconds = sum(one.counts.wait_seconds for one in self._workers.values())
        return message.stats is None or before is None or message.stats.steps != before.steps

    def end(self, index: int) -> None:
        """A worker has ended."""
        self._worker(index).end()

    def stats(self) -> EngineStats:
        """The counters of all engines of this run together: sums, but `max_batch_tokens` is that of one engine."""
        return together([stats for worker in [*self._workers.values()] for stats in worker.engines])

    def workers(self) -> Iterator[tuple[int, WorkerTally]]:
        """Yields the number and the counters of each worker whose model has been loaded."""
        yield from ((index, worker) for index, worker in sorted(self._workers.items()) if worker.engines)

    def _worker(self, index: int) -> WorkerTally:
        return self._workers.setdefault(index, WorkerTally())

    def _set(self, unit: int, finished: int, committed: int) -> None:
        before = self._open.get(unit, [0, 0])
        self.counts.done += finished - before[0]
        self.counts.committed += committed - before[1]
        self._open[unit] = [finished, committed]


def together(several: list[EngineStats]) -> EngineStats:
    """The counters of several engines: sums, but `max_batch_tokens` is that of one engine."""
    found = EngineStats.of_all(several)
    found.max_batch_tokens = max((stats.max_batch_tokens for stats in several), default=0)
    return found
