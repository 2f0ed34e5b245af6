"""Serving: turns batches of rows into finished rows with one engine."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from .call_lock import CallLock
from .engine.engine import Engine
from .engine.request import Completion
from .engine.source import Item
from .engine.stats import Clock
from .errors import RowError
from .prefetch import Prefetch
from .requests import RequestBuilder
from .rows import ErrorRow, Finished, GenerateRow, RowInFlight, ScoreRow, held_bytes, input_bytes
from .serving_call import CallRows, RunningCall, ServingCall

__all__ = ["ErrorRow", "Finished", "Row", "RowInFlight", "Serving", "ServingCall"]

Row = GenerateRow | ScoreRow | ErrorRow

WINDOW_BYTES = 64 << 20
"""What the rows of one window hold, at most, unless it is a single row. There are two windows: the rows that are read
ahead, and the rows that the engine has taken beyond those that run."""
PART_BYTES = 16 << 20
"""What rows whose texts are encoded together hold, unless it is a single row."""

CLOSED = "this LLM is closed; load the model again to use it"
NOT_FINITE = "the model's numbers are not finite; float16 may have overflowed: use bfloat16 or float32"
ABORTED = "the row was aborted before its scores were known"


class AnyServing(ABC):
    """Serves rows, one call at a time. Any thread may call; calls of several threads wait in line."""

    def __init__(self) -> None:
        self._lock = CallLock()

    @abstractmethod
    def _rows(self, batches: Iterable[Sequence[Row]], stop_at_error: bool) -> CallRows:
        """The rows of a call; see `run`."""

    @abstractmethod
    def _free(self) -> None:
        """Frees what serves, at the end."""

    def run(self, batches: Iterable[Sequence[Row]], *, stop_at_error: bool = False) -> ServingCall:
        """Serves rows, and yields lists of finished rows in the order in which they finish, one list for each step.

        A thread reads the batches and encodes their texts, ahead by a bounded number of rows and bytes. Error rows, and
        rows that need no computing, are finished at once. A row whose constraint is being compiled lets others pass.

        Args:
            batches: each batch is served without waiting for the next one.
            stop_at_error: end after the first error row, once the rows before it are finished.
        """
        return ServingCall(self._lock, lambda: self._rows(batches, stop_at_error))

    def abort(self, key: Hashable) -> None:
        """Ends the row with this key at the next step, with the tokens that it has. Any thread may call.

        Does nothing if the row is finished already, or if no call is running.
        """
        self._lock.check()
        call = self._lock.holder
        if isinstance(call, RunningCall):
            call.abort(key)

    def check(self) -> None:
        """Raises RuntimeError if this model cannot serve: after `close`, and in a fork of its process."""
        self._lock.check()

    def close(self) -> bool:
        """Waits for the running call, refuses all later calls, and drops the reference to the engine.

        Returns:
            False if nothing was done: it was closed before, or this process is a fork.
        """
        if not self._lock.is_in_its_process or self._lock.is_closed:
            return False
        self._lock.close(RunningCall(self._lock, None), CLOSED)
        self._free()
        return True


class Serving(AnyServing):
    """Serves rows with one engine."""

    def __init__(self, engine: Engine, builder: RequestBuilder) -> None:
        super().__init__()
        self._engine: Engine | None = engine  # None after `close`
        self._builder = builder

    def _free(self) -> None:
        self._engine = None

    def _rows(self, batches: Iterable[Sequence[Row]], stop_at_error: bool) -> _CallRows:
        engine = self._engine
        if engine is None:  # another thread has closed it since the last check
            raise RuntimeError(CLOSED)
        return _CallRows(engine, self._builder, batches, stop_at_error)


class _CallRows:
    """The rows of one call. It is the engine's source of requests, and collects the completions of each row.

    Attributes:
        is_ended: the engine has taken all requests.
    """

    def __init__(
        self, engine: Engine, builder: RequestBuilder, batches: Iterable[Sequence[Row]], stop_at_error: bool
    ) -> None:
        self.is_ended = False
        self._engine = engine
        self._builder = builder
        self._batches = batches
        self._stops_at_error = stop_at_error
        self._prefetch: Prefetch[Finished] | None = None
        self._running: dict[int, RowInFlight] = {}  # by the key of the row's requests
        self._running_bytes = 0
        self._finished: list[Finished] = []
        self._is_cancelled = False
        self._aborted: set[Hashable] = set()  # keys of rows to abort that the engine has not taken yet
        self._recent: dict[Hashable, None] = {}  # keys of the latest finished rows, which cannot be aborted any more

    def serve(self) -> Generator[list[Finished], None, None]:
        """Runs the engine, and yields lists of finished rows."""
        self._prefetch = Prefetch(
            self._built(), self._engine.window, self._weight, _needed, self._stops_at_error, self._is_aborted
        )
        # `abort` and `cancel`, in other threads, note what they want first and look for the prefetch second; here the
        # prefetch is there first. So at least one of the two finds the other's entry.
        if self._aborted or self._is_cancelled:
            self._prefetch.drop()
        steps = self._engine.run(self)
        try:
            for completions in steps:
                if self._is_cancelled:
                    return
                finished = self._take_finished(completions)
                if finished:
                    yield finished
                if self._stops_at_error and any(_has_failed(row) for row in finished):
                    return
            if finished := self._take_finished(()):
                yield finished
        finally:
            steps.close()
            self._prefetch.close()

    def has_ready(self, count: int) -> bool:
        """See `Source`."""
        # Without ready rows the engine takes more only when none of its own waits.
        has_room = self._running_bytes < WINDOW_BYTES
        return self._prefetch is not None and has_room and self._prefetch.has_ready(count)

    def take(self, most: int, wait: bool) -> list[Item]:
        """See `Source`. If only rows that need no computing have come, the result is empty and the engine yields."""
        assert self._prefetch is not None
        taken: list[Item] = []
        for row in map(_with_constraint, self._prefetch.take(most, wait)):
            if isinstance(row, ErrorRow) or not row.requests:
                self._end(row.key, row)
                if self._stops_at_error and isinstance(row, ErrorRow):
                    self.is_ended = True
                    return taken
                continue
            # The row is registered first and the set is searched second. `abort`, in another thread, adds to the set
            # first and searches the registered rows second. So at least one of the two finds the other's entry.
            self._running[row.requests[0].key] = row
            self._running_bytes += held_bytes(row)
            if self._aborted and row.key in self._aborted:
                self._abort(row)
            taken.append(row.requests)
        self.is_ended = self._prefetch.is_ended
        return taken

    def abort(self, key: Hashable) -> None:
        """Aborts the row with this key, now or when it is read. Any thread may call."""
        self._aborted.add(key)
        if self._prefetch is not None:
            self._prefetch.drop()
        for row in self._running.copy().values():
            if row.key == key:
                self._abort(row)
        if key in self._recent:
            self._aborted.discard(key)

    def cancel(self) -> None:
        """Ends `serve` at the next step. Any thread may call."""
        self._is_cancelled = True
        if self._prefetch is not None:
            self._prefetch.drop()

    def reads_input_on(self, thread: threading.Thread) -> bool:
        return self._prefetch is not None and self._prefetch.thread is thread

    def _built(self) -> Iterator[list[Finished]]:
        """Lists of rows with their requests. This runs on the thread of the prefetch."""
        stats, clock = self._engine.stats, Clock()
        for batch in self._batches:
            stats.read_seconds += clock.lap()
            for part in _parts(batch, self._engine.window):
                rows = self._builder.build(part)
                stats.encode_seconds += clock.lap()
                yield rows
                clock.lap()  # the time until more rows are wanted
                if self._stops_at_error and any(isinstance(row, ErrorRow) for row in rows):
                    return

    def _weight(self, row: Finished) -> int:
        """A row's requests, and its share of WINDOW_BYTES as so many requests."""
        num_requests = len(row.requests) if isinstance(row, RowInFlight) else 0
        return max(num_requests, 1) + held_bytes(row) * self._engine.window // WINDOW_BYTES

    def _take_finished(self, completions: Iterable[Completion]) -> list[Finished]:
        """Hands these completions to their rows, and takes all rows that are finished."""
        assert self._prefetch is not None
        for waiting in self._prefetch.take_dropped():
            self._end(waiting.key, _aborted(waiting))
        for completion in completions:
            row = self._running[completion.request.key]
            row.completions.append(completion)
            if row.is_complete:
                self._end(row.key, _result(row))
                del self._running[completion.request.key]
                self._running_bytes -= held_bytes(row)
        finished, self._finished = self._finished, []
        return finished

    def _end(self, key: Hashable, row: Finished) -> None:
        """Adds a finished row."""
        self._recent[key] = None
        if len(self._recent) > self._engine.window:
            del self._recent[next(iter(self._recent))]
        self._aborted.discard(key)
        self._finished.append(row)

    def _is_aborted(self, row: Finished) -> bool:
        return self._is_cancelled or (bool(self._aborted) and row.key in self._aborted)

    def _abort(self, row: RowInFlight) -> None:
        self._aborted.discard(row.key)
        self._engine.abort(row.requests[0].key)


def _result(row: RowInFlight) -> Finished:
    """The row, with its completions sorted by sample; an error row if a completion has failed."""
    completions = row.completions
    completions.sort(key=_sample)
    if any(completion.finish_reason == "error" for completion in completions):
        # prompt_tokens is 0 here, as in all parts that earlier versions wrote: a resumed job must give equal parts.
        return ErrorRow.of(row.row, RowError("not_finite", NOT_FINITE), 0)
    if row.scoring is not None and any(completion.finish_reason == "abort" for completion in completions):
        return ErrorRow.of(row.row, RowError("abort", ABORTED))
    return _with_constraint(row)


def _aborted(row: Finished) -> Finished:
    """A row that was aborted before the engine took it."""
    if isinstance(row, ErrorRow) or not row.requests:
        return row
    row.completions = [Completion.of_waiting(request) for request in row.requests]
    return _result(row)


def _sample(completion: Completion) -> int:
    return completion.request.sample


def _has_failed(row: Finished) -> bool:
    return isinstance(row, ErrorRow) and row.error.code == "not_finite"


def _needed(row: Finished) -> Future[Any] | None:
    """What a row waits for before it may start: its constraint."""
    return row.constraint.compiled if isinstance(row, RowInFlight) and row.constraint is not None else None


def _with_constraint(row: Finished) -> Finished:
    """The row, or an error row if its constraint cannot be used."""
    if isinstance(row, RowInFlight) and row.constraint is not None and (error := row.constraint.error()):
        return ErrorRow.of(row.row, error, 0)
    return row


def _parts(batch: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    """Divides a batch into runs of rows with about `most` requests and PART_BYTES: one row may have thousands of
    samples, or a long text."""
    start = count = held = 0
    for i, row in enumerate(batch):
        count += row.params.n if isinstance(row, GenerateRow) else 1
        held += input_bytes(row)
        if count >= most or held >= PART_BYTES:
            yield batch[start : i + 1]
            start, count, held = i + 1, 0, 0
    if start < len(batch):
        yield batch[start:]
