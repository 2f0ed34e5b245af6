"""The rows of one call, handed out to several engines."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Sequence
from typing import Any

from ..errors import RowError
from ..output_builder import OutputBuilder
from ..prefetch import Prefetch
from ..rows import ErrorRow, GenerateRow, ScoreRow, input_bytes
from ..serving import WINDOW_BYTES
from .engine_process import EngineProcess
from .engine_processes import EngineProcesses, loading_error
from .messages import Abort, CloseInput, Ended, Failed, Results, Row

logger = logging.getLogger(__name__)

MOST_ENDS = 16
"""Processes that may end one after another without a finished row in between. To find one row among 16,384 takes 15."""

Result = tuple[Hashable, Any]
Weighed = tuple[Row, int]
"""A row with its weight: the number of its requests, and its share of WINDOW_BYTES as so many requests."""


class ParallelRows:
    """The rows of one call, which several engines serve.

    Each process is sent consecutive rows, so that common prefixes mostly meet in one engine, and holds as many as fill
    its slots twice. When a process ends, the rows that it held are suspects: another process serves them, and nothing
    else meanwhile, in halves until the row that ends its process is alone. That row becomes an error row. All other
    rows are served by the other processes.

    Args:
        batches: each batch is handed out without waiting for the next one.
    """

    def __init__(self, engines: EngineProcesses, batches: Iterable[Sequence[Row]]) -> None:
        self._engines = engines
        self._batches = batches
        self._calls = [next(engines.numbers)]  # numbers: a row that is served again, after the input's end, has another
        self._is_closed = False  # the engines know that this call has no further rows
        self._prefetch: Prefetch[Row] | None = None
        self._is_woken = False
        self._waiting: deque[Weighed] = deque()  # read, and not sent
        self._places: dict[Hashable, tuple[EngineProcess, int]] = {}  # by key: who serves the row, under which number
        self._suspects: list[list[Weighed]] = []
        self._isolated: EngineProcess | None = None  # the process that serves suspects
        self._num_ends = 0
        self._finished: list[Result] = []
        self._aborted: set[Hashable] = set()  # keys of rows to abort that are not finished
        self._recent: dict[Hashable, None] = {}  # keys of the latest finished rows, which cannot be aborted any more

    def serve(self) -> Generator[list[Result], None, None]:
        """Hands out the rows, and yields lists of (key, output or outputs) as rows finish."""
        self._engines.start_missing()
        ahead = 2 * self._engines.num_slots
        self._prefetch = Prefetch(self._batches, ahead, self._weight, is_dropped=self._is_aborted, on_change=self._wake)
        try:
            while True:
                self._hand_out(self._prefetch)
                if self._is_done(self._prefetch):
                    break
                self._take_in()
                finished, self._finished = self._finished, []
                if finished:
                    yield finished
            if self._finished:
                yield self._finished
        finally:
            self._prefetch.close()
            self._engines.end_calls()

    def abort(self, key: Hashable) -> None:
        """Aborts the row with this key, now or when it is read. Any thread may call."""
        self._aborted.add(key)  # first; `_send` registers the row first, and searches the set second
        if self._prefetch is not None:
            self._prefetch.drop()
        if (place := self._places.get(key)) is not None:
            process, number = place
            process.send(Abort([number]))
        if key in self._recent:
            self._aborted.discard(key)

    def reads_input_on(self, thread: threading.Thread) -> bool:
        return self._prefetch is not None and self._prefetch.thread is thread

    def cancel(self) -> None:
        """Not needed: nothing of this call waits for an engine."""

    def _wake(self) -> None:
        """Makes `_take_in` return. Any thread may call."""
        if not self._is_woken:
            self._is_woken = True
            self._engines.events.put((None, None))

    def _weight(self, row: Row) -> int:
        num_requests = row.params.n if isinstance(row, GenerateRow) else len(row.continuations)
        return max(num_requests, 1) + input_bytes(row) * 2 * self._engines.num_slots // WINDOW_BYTES

    def _is_aborted(self, row: Row) -> bool:
        return bool(self._aborted) and row.key in self._aborted

    def _is_done(self, prefetch: Prefetch[Row]) -> bool:
        is_sent = prefetch.is_ended and not self._waiting and not self._suspects
        return is_sent and not any(process.in_flight for process in self._engines.by_index.values())

    def _hand_out(self, prefetch: Prefetch[Row]) -> None:
        """Sends rows to the processes that have room. Raises the exception of the input."""
        self._is_woken = False
        self._hand_out_suspects()
        processes = [one for one in self._engines.by_index.values() if one.ready and one is not self._isolated]
        dropped = prefetch.take_dropped()
        if not processes:
            self._waiting.extendleft((row, self._weight(row)) for row in reversed(dropped))
            return
        if dropped:  # an engine says what has become of a row that was aborted before it started
            least = min(processes, key=lambda process: process.load)
            self._send(least, [(row, self._weight(row)) for row in dropped])
        room = sum(max(process.room, 0) for process in processes) - sum(weight for _, weight in self._waiting)
        if room > 0:
            self._waiting.extend((row, self._weight(row)) for row in prefetch.take(room, wait=False))
        self._divide(processes)
        if prefetch.is_ended and not self._waiting and not self._is_closed:
            self._is_closed = True
            for process in self._engines.by_index.values():
                process.send(CloseInput(self._calls[-1]))

    def _divide(self, processes: list[EngineProcess]) -> None:
        """Sends the waiting rows, each process an equal share of consecutive rows as far as it has room for them."""
        left = sum(weight for _, weight in self._waiting)
        for place, process in enumerate(sorted(processes, key=lambda process: process.load)):
            share, rows, total = min(process.room, math.ceil(left / (len(processes) - place))), [], 0
            while self._waiting and total < share:
                rows.append(self._waiting.popleft())
                total += rows[-1][1]
            left -= total
            if rows:
                self._send(process, rows)

    def _hand_out_suspects(self) -> None:
        process = self._isolated
        if process is not None and process.ready is not None and not process.in_flight:
            if self._suspects:
                self._send(process, self._suspects.pop(0))
            else:
                self._isolated = None

    def _send(self, process: EngineProcess, rows: list[Weighed]) -> None:
        if self._is_closed:  # a row that is served again comes after the end of the input
            self._calls.append(next(self._engines.numbers))
            self._is_closed = False
        numbers = [next(self._engines.numbers) for _ in rows]
        try:
            process.send_rows(self._calls[-1], numbers, [row for row, _ in rows])
        except Exception as error:
            if len(rows) == 1:
                self._finish_with(rows[0][0], RowError("bad_type", f"the row can't be sent to an engine: {error}"))
                return
            for one in rows:
                self._send(process, [one])
            return
        for number, (row, weight) in zip(numbers, rows, strict=True):
            process.in_flight[number] = row, weight
            process.load += weight
            self._places[row.key] = process, number
        if self._aborted and (found := [n for n, (row, _) in zip(numbers, rows, strict=True) if self._is_aborted(row)]):
            process.send(Abort(found))

    def _take_in(self) -> None:
        """Waits for an event, unless a row is finished already, and takes in all that have come."""
        events = self._engines.events
        try:
            self._handle(*events.get(block=not self._finished))
            while True:
                self._handle(*events.get(block=False))
        except queue.Empty:
            return

    def _handle(self, process: EngineProcess | None, message: Any) -> None:
        if process is None or self._engines.by_index.get(process.index) is not process:
            return  # the input has changed, or this is of a process that has been replaced
        if isinstance(message, Results):
            for number, output in message.results:
                if found := process.in_flight.pop(number, None):  # else it is of an earlier call
                    row, weight = found
                    process.load -= weight
                    self._num_ends = 0
                    self._finish(row, output)
        elif isinstance(message, Failed):
            if message.call in self._calls:
                raise message.error
            if message.call is None:
                self._lose(process, message.error)
        elif isinstance(message, Ended):
            if process.ready is None:
                self._lose(process, loading_error(process))
            else:
                self._replace(process)

    def _replace(self, process: EngineProcess) -> None:
        """Starts another process in place of one that has ended; its rows are suspects."""
        rows = list(process.in_flight.values())
        self._num_ends += 1
        if self._num_ends > MOST_ENDS:
            raise RuntimeError(
                f"{self._num_ends} processes of engines ended one after another, without a finished row in between; "
                f"the last one with {process.ended_with}"
            )
        logger.warning(
            "the process of engine %d ended with %s; its %d rows are served again, and a new process starts",
            process.index,
            process.ended_with,
            len(rows),
        )
        is_isolated = process is self._isolated
        new = self._engines.replace(process)
        if is_isolated or (rows and self._isolated is None):
            self._isolated = new
        if len(rows) == 1 and is_isolated:
            reason = f"the row ended the process of its engine twice, the second time alone; with {process.ended_with}"
            self._finish_with(rows[0][0], RowError("engine_crash", reason))
        elif rows:
            half = len(rows) // 2
            self._suspects[:0] = [part for part in (rows[:half], rows[half:]) if part]

    def _lose(self, process: EngineProcess, error: Exception) -> None:
        """Goes on, until the next call, without an engine that cannot be started. Raises `error` if none is left."""
        del self._engines.by_index[process.index]
        left = list(self._engines.by_index.values())
        if not left:
            raise error
        logger.warning("engine %d cannot be started again, and %d are left: %s", process.index, len(left), error)
        if self._isolated is process:
            self._isolated = left[0]

    def _finish_with(self, row: Row, reason: RowError) -> None:
        error = ErrorRow.of(row, reason)
        outputs = OutputBuilder(None)
        ((_, output),) = outputs.scores([error]) if isinstance(row, ScoreRow) else outputs.requests([error])
        self._num_ends = 0
        self._finish(row, output)

    def _finish(self, row: Row, output: Any) -> None:
        key = row.key
        self._places.pop(key, None)
        self._recent[key] = None
        if len(self._recent) > 4 * self._engines.num_slots:
            del self._recent[next(iter(self._recent))]
        self._aborted.discard(key)
        self._finished.append((key, output))
