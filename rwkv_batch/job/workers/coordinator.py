"""The coordinator of a job: it hands units to workers, one at a time as they ask, and replaces workers that end."""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import groupby

from ...errors import RowError
from ..plan import Assignment, Unit, UnitPlan
from .interface import Worker, Workers
from .messages import (
    Ask,
    BadRow,
    Begun,
    Close,
    Committed,
    Done,
    Ended,
    Event,
    Failed,
    Left,
    Message,
    Placed,
    Published,
    Ready,
    Served,
    Status,
    Stop,
    Taken,
)
from .suspects import Suspects
from .tally import Tally
from .worker_log import WorkerLog

LOOK_SECONDS = 0.5
"""The longest time until a signal, or a worker that hangs, is noticed."""
STOP_SECONDS = 120.0
"""How long workers may take to commit what is finished when the job is stopped."""
LOADING_SECONDS = 600.0
"""A worker that loads the model may be silent for so long at least."""
MOST_ENDS = 12
"""Processes that may end one after another, without a row that is finished in between."""
LOADING_ENDS = 3
"""The same number while no worker has loaded the model yet."""
MOST_UNIT_ENDS = 24
"""The same number for the workers of one unit, without rows of that unit that are committed in between."""
MOST_CRASHES = 20
"""Rows that may be found to end their process one after another, without a row that is served in between."""

logger = logging.getLogger(__name__)


class _Known:
    """What the coordinator knows of a worker.

    Attributes:
        is_placed, is_ready: its process runs; its model is loaded.
        is_leaving: it has said that it ends.
        units: the units that it serves, by number.
        in_flight: the rows that it has read, and that are not finished.
        seen_at: when it last made progress, or was given something to do, in seconds of the host's clock.
        hangs: in words; "" while it does not.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.is_placed = self.is_ready = self.is_leaving = False
        self.units: dict[int, Unit] = {}
        self.in_flight: set[int] = set()
        self.seen_at = time.monotonic()
        self.hangs = ""


class Coordinator:
    """Serves the units of a job with several workers.

    A worker asks for a unit when it has read the rows of those that it has, so that its slots stay full while the rows
    of one unit end and those of the next one begin. It is given at most its share of the units that are not published,
    so that all workers end at about the same time.

    When a worker's process ends, other workers serve its units. Its rows in flight are suspects, unless its machine is
    lost; where none was in flight, all rows of its units are. A worker that has nothing else to do serves suspects (see
    `Suspects`), and the row that ends its process alone becomes an error row. Until then their units wait.

    Args:
        plan: the units of the job.
        missing: those that have no part yet.
        finished: rows of the others.
        workers: starts them.
        log: writes an event, given its name and its fields.
        timeout: seconds without progress after which a worker is replaced.
        check: is called often, and raises where the job is to end.

    Attributes:
        tally: the counters.
        bad_row: the row at which a worker has ended, under run.on_row_error: stop.
    """

    def __init__(
        self,
        plan: UnitPlan,
        missing: Sequence[Unit],
        finished: int,
        workers: Workers,
        log: Callable[..., None],
        timeout: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.tally = Tally(finished)
        self.bad_row: BadRow | None = None
        self._plan = plan
        self._waiting = deque(missing)
        self._unpublished = {unit.index for unit in missing}
        self._workers = workers
        self._log = log
        self._worker_log = WorkerLog(self.tally, log)
        self._timeout = timeout
        self._check = check
        self._known: dict[int, _Known] = {}  # by the number of the worker
        self._asking: list[_Known] = []
        self._suspects = Suspects()
        self._isolated: _Known | None = None  # the worker that serves suspects
        self._rest: deque[Assignment] = deque()  # what that worker has not been given yet of the rows that it serves
        self._outstanding = 0  # assignments of those rows that it has been given, and that are not done
        self._blocked: dict[int, Unit] = {}  # units with suspects
        self._num_ends = 0
        self._unit_ends: Counter[int] = Counter()  # of a unit: workers that have ended since rows of it were committed
        self._num_crashes = 0
        self._has_loaded = False
        self._is_closing = False

    def serve(self) -> None:
        """Returns when all units are published, or at a bad row under run.on_row_error: stop.

        Raises:
            RwkvBatchError, OSError: the job cannot be served.
            RuntimeError: the processes of workers end one after another.
            BaseException: a signal, for example. What was finished is committed first.
        """
        try:
            for index in range(min(self._workers.count, len(self._unpublished))):
                self._start(index)
            while self._unpublished and self.bad_row is None:
                self._take_in()
                self._worker_log.tick()
                self._check()
                self._hand_out()
                self._replace_hanging()
            self._end(Close() if self.bad_row is None else Stop())
        except BaseException:
            self._end(Stop())
            raise
        finally:
            self._worker_log.end()
            self._workers.close()

    def _start(self, index: int) -> None:
        self._known[index] = _Known(self._workers.start(index))

    def _end(self, message: Close | Stop) -> None:
        """Tells all workers to end, and waits until they have."""
        self._is_closing = True
        for known in self._known.values():
            known.worker.send(message)
        deadline = time.monotonic() + STOP_SECONDS
        while any(known.is_ready for known in self._known.values()) and time.monotonic() < deadline:
            self._take_in()

    def _take_in(self) -> None:
        """Waits for an event, and takes in all that have come."""
        events = self._workers.events
        try:
            self._hear(*events.get(timeout=LOOK_SECONDS))
            while True:
                self._hear(*events.get(block=False))
        except queue.Empty:
            return

    def _hear(self, worker: Worker, message: Message) -> None:
        known = self._known.get(worker.index)
        if known is None or known.worker is not worker:
            return  # of a worker that has been replaced
        if not isinstance(message, Status) or self.tally.hear(worker.index, message):
            known.seen_at = time.monotonic()
        match message:
            case Served():
                self._count_served(known, message)
            case Taken():
                known.in_flight.update(message.rows)
            case Committed():
                del self._unit_ends[message.unit]
                self.tally.commit(worker.index, message)
            case Ask():
                self._asking.append(known)
            case Begun() if message.unit in self._unpublished:  # else its `Published` was faster
                self.tally.begin(message)
            case Published():
                self._publish(known, message.unit)
            case Done():
                self._finish(known, message.unit)
            case Event():
                self._log(message.name, worker=worker.index, **message.fields)
            case BadRow():
                self.bad_row = self.bad_row or message
            case Placed():
                known.is_placed = True
                self._log("worker", worker=worker.index, state="placed", host=message.host, pid=message.pid)
            case Ready():
                known.is_ready = self._has_loaded = True
                self.tally.start(worker.index)
                self._log("worker", worker=worker.index, state="ready")
            case Left():
                known.is_leaving = True
            case Failed() if self._is_closing:
                logger.warning("worker %d could not commit what was finished: %s", worker.index, message.error)
            case Failed():
                raise message.error
            case Ended():
                self._lose(known, message)

    def _count_served(self, known: _Known, message: Served) -> None:
        self._num_ends = 0
        if message.errors < len(message.rows):
            self._num_crashes = 0
        known.in_flight.difference_update(message.rows)
        self.tally.add(known.worker.index, message)
        for unit, rows in groupby(message.rows, self._unit_of):
            self.tally.serve(unit, len(list(rows)))

    def _publish(self, known: _Known, unit: int) -> None:
        """A unit is published."""
        known.units.pop(unit, None)
        if unit in self._unpublished:
            self._unpublished.discard(unit)
            self._blocked.pop(unit, None)
            self.tally.publish(self._plan.unit(unit))

    def _finish(self, known: _Known, unit: int) -> None:
        """An assignment of single rows is done."""
        known.units.pop(unit, None)
        self._outstanding -= 1
        if not self._outstanding and not self._rest:
            self._suspects.finish_group()

    def _hand_out(self) -> None:
        """Gives assignments to workers that have asked for one, as far as there are any for them."""
        if not (self._suspects or self._rest or self._outstanding):
            self._isolated = None
            self._waiting.extendleft(self._blocked.values())
            self._blocked.clear()
        asking, self._asking = self._asking, []
        for known in asking:
            assignment = self._next_for(known)
            if assignment is None:
                self._asking.append(known)
            else:
                known.units[assignment.unit.index] = assignment.unit
                known.seen_at = time.monotonic()
                known.worker.send(assignment)

    def _next_for(self, known: _Known) -> Assignment | None:
        if self._isolated is None and (self._suspects or self._rest) and not known.units:
            self._isolated = known
        if known is self._isolated:
            if not self._rest and not self._outstanding and self._suspects:
                self._rest = deque(self._by_unit(self._suspects.next_group()))
            if not self._rest:
                return None
            self._outstanding += 1
            return self._rest.popleft()
        running = sum(one.is_placed for one in self._known.values())
        share = -(-len(self._unpublished) // max(running, 1))
        while self._waiting and len(known.units) < share:
            unit = self._waiting.popleft()
            if unit.index in self._unpublished:
                return Assignment(unit)
        return None

    def _by_unit(self, rows: Sequence[int], error: RowError | None = None) -> list[Assignment]:
        """Assignments of single rows."""
        groups = groupby(rows, self._unit_of)
        return [Assignment(self._plan.unit(unit), frozenset(found), error) for unit, found in groups]

    def _unit_of(self, row: int) -> int:
        return row // self._plan.rows_per_part

    def _lose(self, known: _Known, ended: Ended) -> None:
        """A worker has ended. Another one takes its place, and its units are served again."""
        index = known.worker.index
        del self._known[index]
        self._asking = [one for one in self._asking if one is not known]
        how = known.hangs or ended.how
        self._log("worker", worker=index, state="left" if known.is_leaving else "ended", how=how)
        if self._is_closing:
            return
        self.tally.end(index)
        for index_of_unit in known.units:
            self.tally.lose(index_of_unit)
        in_flight = {row for row in known.in_flight if self._unit_of(row) in known.units}
        is_suspicious = not (known.is_leaving or ended.is_machine_lost)
        if not known.is_leaving:
            logger.warning(
                "worker %d ended with %s; %d of its rows are served again, and a new worker starts",
                index,
                how,
                len(in_flight),
            )
        if known is self._isolated:
            self._lose_isolated(in_flight, is_suspicious, how)
        elif is_suspicious:  # with no row in flight, it was reading rows, or making a part
            self._suspects.add(in_flight or [row for unit in known.units.values() for row in unit.rows])
        suspicious = {self._unit_of(row) for row in self._suspects.rows}
        for unit in reversed(known.units.values()):
            if unit.index in suspicious:
                self._blocked[unit.index] = unit
            elif unit.index in self._unpublished and unit.index not in self._blocked:
                self._waiting.appendleft(unit)
        self._count_end(how, is_counted=is_suspicious)
        if is_suspicious:
            self._count_ends_of_units(known, how)
        self._start(index)

    def _lose_isolated(self, in_flight: set[int], is_suspicious: bool, how: str) -> None:
        """The worker that served suspects has ended. Another one serves them."""
        self._isolated = None
        self._rest.clear()
        self._outstanding = 0
        if not is_suspicious:
            self._suspects.retry_group()
            return
        found = self._suspects.end(in_flight)
        if found is not None:
            reason = f"the row ended two processes in which it was alone; the last one ended with {how}"
            logger.warning("row %d: %s", found, reason)
            self._num_crashes += 1
            if self._num_crashes > MOST_CRASHES:
                raise RuntimeError(
                    f"{self._num_crashes} rows ended their processes, also alone, and no other row was served in "
                    f"between; the last process ended with {how}"
                )
            self._rest.extend(self._by_unit([found], RowError("engine_crash", reason)))

    def _count_end(self, how: str, is_counted: bool) -> None:
        """Raises RuntimeError where too many processes have ended one after another."""
        self._num_ends += is_counted
        if self._num_ends > (MOST_ENDS if self._has_loaded else LOADING_ENDS):
            raise RuntimeError(
                f"the processes of {self._num_ends} workers ended one after another, and no row was finished in "
                f"between; the last one ended with {how}"
            )

    def _count_ends_of_units(self, known: _Known, how: str) -> None:
        """Raises RuntimeError where workers finish rows of a unit, and end before they commit one, again and again."""
        self._unit_ends.update(known.units.keys())
        for unit in known.units:
            if self._unit_ends[unit] > MOST_UNIT_ENDS:
                raise RuntimeError(
                    f"{self._unit_ends[unit]} workers of unit {unit} ended one after another, and none of its rows was "
                    f"committed in between; the last one ended with {how}"
                )

    def _replace_hanging(self) -> None:
        """Ends workers that have something to do and make no progress. Their end is an event."""
        now = time.monotonic()
        for known in self._known.values():
            is_busy = bool(known.units) or (known.is_placed and not known.is_ready)
            timeout = self._timeout if known.is_ready else max(self._timeout, LOADING_SECONDS)
            if is_busy and not known.hangs and now - known.seen_at > timeout:
                known.hangs = f"no step for {now - known.seen_at:.3g} s (run.worker_timeout: {self._timeout:g})"
                known.worker.kill()
