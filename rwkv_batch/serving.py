"""Rows in flight: from batches of rows to finished rows, over one engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence

from .engine.engine import Engine
from .engine.request import Completion
from .engine.source import Item
from .errors import RowError
from .prefetch import Prefetch
from .requests import RequestBuilder
from .rows import ErrorRow, Finished, GenerateRow, RowInFlight, ScoreRow
from .turns import Turns

__all__ = ["ErrorRow", "Finished", "Row", "RowInFlight", "Serving", "ServingCall"]

Row = GenerateRow | ScoreRow | ErrorRow

CLOSED = "this LLM is closed; load the model again to use it"
NOT_FINITE = "the model's numbers are not finite; float16 may have overflowed: use bfloat16 or float32"
ABORTED = "the row was aborted before its scores were known"


class Serving:
    """Serves rows with one engine, one call at a time. Any thread may call; threads wait for each other."""

    def __init__(self, engine: Engine, builder: RequestBuilder) -> None:
        self._engine: Engine | None = engine  # None once it is closed
        self._builder = builder
        self._turns = Turns()

    def run(self, batches: Iterable[Sequence[Row]], *, stop_at_error: bool = False) -> ServingCall:
        """Serve rows as they come: finished rows in the order in which they finish, those of a step together.

        A thread reads the batches and encodes their texts, a bounded number of rows ahead. Rows that need no computing
        come out at once; so do error rows, those among the input included.

        Args:
            batches: a batch that has come is served without waiting for the next one.
            stop_at_error: end behind the first error row, once the rows before it are finished.
        """
        return ServingCall(self._turns, lambda: self._rows(batches, stop_at_error))

    def abort(self, key: Hashable) -> None:
        """End the row with this key. It comes out soon, with the tokens that it has. Any thread may call.

        Does nothing where the row is finished, or where no call is running.
        """
        self._turns.check()
        call = self._turns.holder
        if isinstance(call, ServingCall):
            call.abort(key)

    def check(self) -> None:
        """Raise RuntimeError where this model cannot serve: after `close`, and in a fork of its process."""
        self._turns.check()

    def close(self) -> bool:
        """Wait for the call that is running, refuse all later ones, and let go of the engine.

        Returns:
            False where nothing was done: it was closed before, or this is a fork of the process.
        """
        if not self._turns.is_here or self._turns.are_over:
            return False
        self._turns.end(ServingCall(self._turns, None), CLOSED)
        self._engine = None
        return True

    def _rows(self, batches: Iterable[Sequence[Row]], stop_at_error: bool) -> _CallRows:
        engine = self._engine
        if engine is None:  # another thread has closed it since this one has looked
            raise RuntimeError(CLOSED)
        return _CallRows(engine, self._builder, batches, stop_at_error)


class ServingCall(Iterator[list[Finished]]):
    """Lists of finished rows. Has the engine from the first list to the end, or until it is closed.

    Args:
        start: makes the rows once the engine is free; None for a call that serves none.

    Attributes:
        thread: the thread that has asked for the last list.
        is_busy: a thread is asking at this moment.
    """

    def __init__(self, turns: Turns, start: Callable[[], _CallRows] | None) -> None:
        self.thread = threading.current_thread()
        self.is_busy = False
        self._turns = turns
        self._start = start
        self._rows: _CallRows | None = None
        self._lists: Generator[list[Finished], None, None] | None = None

    def __next__(self) -> list[Finished]:
        self.thread = threading.current_thread()
        try:
            if self._lists is None:
                if self._start is None:
                    raise StopIteration
                self._turns.check()
                self._rows = rows = self._start()  # before its turn: from then on `abort` finds them
                self._turns.take(self)
                self._lists = rows.serve()
            self._turns.check()
            self.is_busy = True
            return next(self._lists)
        except BaseException:
            self.close()
            raise
        finally:
            self.is_busy = False

    def __del__(self) -> None:
        self.close()

    def is_made_by(self, thread: threading.Thread) -> bool:
        rows = self._rows
        return rows is not None and rows.are_made_by(thread)

    def abort(self, key: Hashable) -> None:
        """End the row with this key; see `Serving.abort`."""
        if (rows := self._rows) is not None:
            rows.abort(key)

    def close(self) -> None:
        """End the call: rows that are not finished are dropped. In a fork of the process nothing is touched."""
        if self._turns.is_here:
            if self._lists is not None:
                self._lists.close()
            self._turns.give_back(self)
            self._rows = None
        self._start = None


class _CallRows:
    """The rows of one call: where the engine takes requests from, and where its completions go.

    Attributes:
        is_ended: the engine has taken everything.
    """

    def __init__(
        self, engine: Engine, builder: RequestBuilder, batches: Iterable[Sequence[Row]], stop_at_error: bool
    ) -> None:
        self.is_ended = False
        self._engine = engine
        self._builder = builder
        self._batches = batches
        self._stops_at_error = stop_at_error
        self._ahead: Prefetch[Finished] | None = None
        self._running: dict[int, RowInFlight] = {}  # by the key of the requests
        self._finished: list[Finished] = []
        self._aborted: set[Hashable] = set()  # keys of rows that the engine has not taken, as far as is known
        self._ended: dict[Hashable, None] = {}  # keys of the latest rows that have finished: too late to abort them

    def serve(self) -> Generator[list[Finished], None, None]:
        """Lists of finished rows."""
        self._ahead = Prefetch(self._built(), self._engine.window, _num_requests)
        steps = self._engine.run(self)
        try:
            for completions in steps:
                finished = self._take_finished(completions)
                if finished:
                    yield finished
                if self._stops_at_error and any(_is_not_finite(row) for row in finished):
                    return
            if finished := self._take_finished(()):
                yield finished
        finally:
            steps.close()
            self._ahead.close()

    def has_ready(self, count: int) -> bool:
        """As the engine's `Source` has it."""
        return self._ahead is not None and self._ahead.has_ready(count)

    def take(self, most: int, wait: bool) -> list[Item]:
        """As the engine's `Source` has it. Where only rows that need no computing have come, there are no requests."""
        assert self._ahead is not None
        taken: list[Item] = []
        for row in self._ahead.take(most, wait):
            if isinstance(row, ErrorRow) or not row.requests:
                self._end(row.key, row)
                continue
            # First among those that run, then asked for: `abort` does it the other way round, so neither misses it.
            self._running[row.requests[0].key] = row
            if self._aborted and row.key in self._aborted:
                self._abort(row)
            taken.append(row.requests)
        self.is_ended = self._ahead.is_ended
        return taken

    def abort(self, key: Hashable) -> None:
        """Any thread may call."""
        self._aborted.add(key)
        for row in self._running.copy().values():
            if row.key == key:
                self._abort(row)
        if key in self._ended:
            self._aborted.discard(key)

    def are_made_by(self, thread: threading.Thread) -> bool:
        return self._ahead is not None and self._ahead.thread is thread

    def _built(self) -> Iterator[list[Finished]]:
        """Rows with their requests; runs on the thread of `_ahead`."""
        batches = (part for batch in self._batches for part in _parts(batch, self._engine.window))
        for batch in batches:
            rows = self._builder.build(batch)
            errors = [i for i, row in enumerate(rows) if isinstance(row, ErrorRow)] if self._stops_at_error else []
            if errors:
                yield rows[: errors[0] + 1]
                return
            yield rows

    def _take_finished(self, completions: Iterable[Completion]) -> list[Finished]:
        """The rows that have nothing more to come, with those that these completions finish."""
        for completion in completions:
            row = self._running[completion.request.key]
            row.completions.append(completion)
            if row.is_complete:
                self._end(row.key, _finished(row))
                del self._running[completion.request.key]
        finished, self._finished = self._finished, []
        return finished

    def _end(self, key: Hashable, row: Finished) -> None:
        self._ended[key] = None
        if len(self._ended) > self._engine.window:
            del self._ended[next(iter(self._ended))]
        self._aborted.discard(key)
        self._finished.append(row)

    def _abort(self, row: RowInFlight) -> None:
        self._aborted.discard(row.key)
        self._engine.abort(row.requests[0].key)


def _finished(row: RowInFlight) -> Finished:
    """A row whose completions have all come, in order; an error row where they cannot be its result."""
    completions = row.completions
    completions.sort(key=_sample)
    if any(completion.finish_reason == "error" for completion in completions):
        return ErrorRow.of(row.row, RowError("not_finite", NOT_FINITE), 0)  # which parts have always said
    if row.scoring is not None and any(completion.finish_reason == "abort" for completion in completions):
        return ErrorRow.of(row.row, RowError("abort", ABORTED))
    return row


def _sample(completion: Completion) -> int:
    return completion.request.sample


def _is_not_finite(row: Finished) -> bool:
    return isinstance(row, ErrorRow) and row.error.code == "not_finite"


def _num_requests(row: Finished) -> int:
    return max(len(row.requests), 1) if isinstance(row, RowInFlight) else 1


def _parts(batch: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    """Consecutive rows that have `most` requests together, or little more: a row may have thousands of samples."""
    start = count = 0
    for i, row in enumerate(batch):
        count += row.params.n if isinstance(row, GenerateRow) else 1
        if count >= most:
            yield batch[start : i + 1]
            start, count = i + 1, 0
    if start < len(batch):
        yield batch[start:]
