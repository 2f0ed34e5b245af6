"""The counters of a job that several workers serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...engine.stats import EngineStats
from ..output.writer import Counts
from ..plan import Unit
from .messages import Begun, Committed, Served, Status


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
        self._stats: dict[int, EngineStats] = {}  # by the number of the worker
        self._ended: list[EngineStats] = []

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

    def add(self, message: Served) -> None:
        """Adds what is counted once in a run, also for rows that are lost and served again."""
        self.counts.errors += message.errors
        self.counts.scored_tokens += message.scored_tokens
        self.counts.lengths.add(message.lengths)

    def commit(self, message: Committed) -> None:
        """So many rows of a unit are committed."""
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

    def hear(self, index: int, message: Status) -> bool:
        """Notes the counters of a worker's engine. Returns whether it has made a step since the last time."""
        stats = message.stats
        if stats is None:
            return True
        before = self._stats.get(index)
        self._stats[index] = stats
        return before is None or stats.steps != before.steps

    def end(self, index: int) -> None:
        """A worker has ended: its engine has no slots any more."""
        if index in self._stats:
            stats = self._stats.pop(index)
            self._ended.append(replace(stats, running=0, max_batch_size=0))

    def stats(self) -> EngineStats:
        """The counters of all engines of this run together: sums, but `max_batch_tokens` is that of one engine."""
        several: Sequence[EngineStats] = [*self._stats.values(), *self._ended]
        found = EngineStats.of_all(several)
        found.max_batch_tokens = max((stats.max_batch_tokens for stats in several), default=0)
        return found

    def _set(self, unit: int, finished: int, committed: int) -> None:
        before = self._open.get(unit, [0, 0])
        self.counts.done += finished - before[0]
        self.counts.committed += committed - before[1]
        self._open[unit] = [finished, committed]
