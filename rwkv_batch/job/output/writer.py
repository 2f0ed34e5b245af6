"""The writer: a thread that commits finished rows every few seconds, and publishes units that are complete."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa

from ...rows import ErrorRow, Finished, RowInFlight
from ..plan import Unit
from .commit import JobFiles
from .length_counts import LengthCounts, completion_lengths
from .parts import RowSource
from .results import held_bytes

QUEUE_BYTES = 16 << 20
"""`add` waits while rows of more than this many bytes wait for the thread."""
BUFFER_BYTES = 32 << 20
"""Rows of more than this many bytes are committed before `flush_seconds` are over."""
BATCH_ROWS = 256
"""The number of a unit's rows that become columns together. Fewer do only when they are committed."""
BATCH_OVERHEAD = 20_000
"""Estimate of the bytes that the columns of a batch hold beside their values."""
LOOK_SECONDS = 1.0
"""The longest time until a waiting thread notices a signal, or that it has been abandoned."""


@dataclass
class Counts:
    """Numbers of rows of this process's units.

    Args:
        resumed: rows that earlier runs have committed.
        done: finished rows, of earlier runs and of this one.
        committed: durable rows.
        errors: rows that this run has finished as errors.
        scored_tokens: tokens of continuations that this run has scored.
        lengths: of the completions that this run has finished.
        wait_seconds: time that the caller of `Writer.add` has waited for the disk, the last commit included.
    """

    resumed: int = 0
    done: int = 0
    committed: int = 0
    errors: int = 0
    scored_tokens: int = 0
    lengths: LengthCounts = field(default_factory=LengthCounts)
    wait_seconds: float = 0.0

    def resume(self, rows: int) -> None:
        """Counts rows that an earlier run has committed."""
        self.resumed += rows
        self.done += rows
        self.committed += rows


@dataclass
class _OpenUnit:
    """A unit whose part is not published yet.

    Args:
        missing: number of rows that have not been added.
        rows: finished rows that are not in columns yet.
        rows_bytes: what `rows` hold.
        batches: finished rows in columns, not committed yet.
        num_pending: number of rows in `rows` and `batches`.
    """

    unit: Unit
    missing: int
    rows: list[Finished] = field(default_factory=list)
    rows_bytes: int = 0
    batches: list[pa.RecordBatch] = field(default_factory=list)
    num_pending: int = 0


class _Item(NamedTuple):
    """Work for the thread; an action of None ends it. `bytes` is the memory that the item holds."""

    action: Callable[[], None] | None
    bytes: int = 1


class _Queue(queue.Queue[_Item]):
    """A queue whose size is the bytes that its items hold, and not their number."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._bytes = 0

    def _qsize(self) -> int:
        return self._bytes

    def _put(self, item: _Item) -> None:
        super()._put(item)
        self._bytes += item.bytes

    def _get(self) -> _Item:
        item: _Item = super()._get()
        self._bytes -= item.bytes
        return item


class Writer:
    """Takes finished rows, commits them and publishes units. Memory is bounded: `add` waits while the disk is slow.

    Args:
        files: the job's segments and parts.
        source: the input, whose columns parts repeat.
        to_columns: makes columns of finished rows, as `Results.batch` does.
        flush_seconds: the longest time that a finished row waits until it is committed.
        log: writes an event, given its name and its fields.
        on_publish: called with each unit that is published, on the writer's thread.

    Attributes:
        counts: numbers of rows, for progress.
        buffered_bytes: estimate of what rows hold that the thread has taken and not committed.

    Leaving the `with` block commits everything that was added, also after an exception. If another exception, such as a
    second Ctrl-C, interrupts the commit, the thread ends by itself.
    """

    def __init__(
        self,
        files: JobFiles,
        source: RowSource,
        to_columns: Callable[[Sequence[Finished]], pa.RecordBatch],
        flush_seconds: float,
        log: Callable[..., None],
        on_publish: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        self.counts = Counts()
        self.buffered_bytes = 0
        self._files = files
        self._source = source
        self._to_columns = to_columns
        self._flush_seconds = flush_seconds
        self._log = log
        self._on_publish = on_publish
        self._queue = _Queue(QUEUE_BYTES)
        self._units: dict[int, _OpenUnit] = {}
        self._flush_at: float | None = None
        self._is_abandoned = False

    def __enter__(self) -> Writer:
        self._executor = ThreadPoolExecutor(1, "rwkv_batch-writer")
        self._thread = self._executor.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._put(_Item(None))
            start = time.monotonic()
            while not self._thread.done():  # a wait without a limit could miss a signal
                wait([self._thread], LOOK_SECONDS)
            self.counts.wait_seconds += time.monotonic() - start
            self._thread.result()
        finally:
            self._is_abandoned = True
            self._executor.shutdown(wait=False)

    def begin(self, unit: Unit, committed: int) -> None:
        """Announces a unit, before its rows are added. Earlier runs have committed `committed` of its rows."""
        self._put(_Item(partial(self._begin, unit, committed)))

    def add(self, rows: Sequence[Finished]) -> None:
        """Takes finished rows of any announced units; a row's key has its unit.

        Raises:
            Exception: the exception that has ended the thread, such as OSError from a full disk.
        """
        sizes = list(map(held_bytes, rows))
        start = time.monotonic()
        self._put(_Item(partial(self._add, rows, sizes), 1 + sum(sizes)))
        self.counts.wait_seconds += time.monotonic() - start

    def commit(self, then: Callable[[], None]) -> None:
        """Commits all rows that have been added, without waiting for the time. Calls `then` on the writer's thread."""
        self._put(_Item(partial(self._commit_now, then)))

    def _put(self, item: _Item) -> None:
        """Enqueues an item; waits while the queue is full. Raises the exception that has ended the thread."""
        while True:
            if self._thread.done():
                self._thread.result()
                raise RuntimeError("the writer is closed")
            try:
                return self._queue.put(item, timeout=1.0)
            except queue.Full:
                continue

    def _run(self) -> None:
        """The thread's loop: does the queued work, and flushes when it is time."""
        while not self._is_abandoned:
            left = LOOK_SECONDS if self._flush_at is None else self._flush_at - time.monotonic()
            try:
                item = self._queue.get(timeout=min(LOOK_SECONDS, max(0.0, left)))
            except queue.Empty:
                self._flush_if_due()
                continue
            if item.action is None:
                break
            item.action()
        self._flush()

    def _begin(self, unit: Unit, committed: int) -> None:
        self._units[unit.index] = _OpenUnit(unit, unit.num_rows - committed)
        self.counts.resume(committed)
        self._publish_if_complete(self._units[unit.index])

    def _add(self, rows: Sequence[Finished], sizes: Sequence[int]) -> None:
        self.counts.done += len(rows)
        self.counts.errors += sum(isinstance(row, ErrorRow) for row in rows)
        self.counts.scored_tokens += scored_tokens(rows)
        self.counts.lengths.add(completion_lengths(rows))
        if self._flush_at is None:
            self._flush_at = time.monotonic() + self._flush_seconds
        touched = []
        for index, group in groupby(zip(rows, sizes, strict=True), _unit_index):
            touched.append(self._units[index])
            self._add_to(self._units[index], list(group))
        if self.buffered_bytes > BUFFER_BYTES:
            self._flush()
        self._flush_if_due()
        for opened in touched:
            self._publish_if_complete(opened)

    def _add_to(self, opened: _OpenUnit, sized: Sequence[tuple[Finished, int]]) -> None:
        size = sum(size for _, size in sized)
        opened.rows += [row for row, _ in sized]
        opened.rows_bytes += size
        opened.missing -= len(sized)
        opened.num_pending += len(sized)
        self.buffered_bytes += size
        if len(opened.rows) >= BATCH_ROWS:
            self._make_columns(opened)

    def _make_columns(self, opened: _OpenUnit) -> None:
        """Makes one batch of columns of the unit's finished rows."""
        if not opened.rows:
            return
        batch = self._to_columns(opened.rows)
        opened.batches.append(batch)
        self.buffered_bytes += _batch_bytes(batch) - opened.rows_bytes
        opened.rows, opened.rows_bytes = [], 0

    def _flush_if_due(self) -> None:
        if self._flush_at is not None and time.monotonic() >= self._flush_at:
            self._flush()

    def _commit_now(self, then: Callable[[], None]) -> None:
        self._flush()
        then()

    def _flush(self) -> None:
        """Commits all rows that are not committed yet."""
        for opened in list(self._units.values()):
            self._commit(opened)
        self._flush_at = None

    def _commit(self, opened: _OpenUnit) -> None:
        """Commits the unit's pending rows in one segment."""
        if not opened.num_pending:
            return
        start = time.monotonic()
        self._make_columns(opened)
        self._files.commit(opened.unit, opened.batches)
        self.counts.committed += opened.num_pending
        self._log("commit", unit=opened.unit.index, rows=opened.num_pending, seconds=time.monotonic() - start)
        self.buffered_bytes -= sum(map(_batch_bytes, opened.batches))
        opened.batches, opened.num_pending = [], 0

    def _publish_if_complete(self, opened: _OpenUnit) -> None:
        """Commits and publishes the unit if all of its rows have been added."""
        if opened.missing or opened.unit.index not in self._units:
            return
        self._commit(opened)
        start = time.monotonic()
        part = self._files.publish(opened.unit, self._source)
        del self._units[opened.unit.index]
        seconds = time.monotonic() - start
        self._log("publish", part=part.name, rows=part.rows, errors=part.errors, bytes=part.bytes, seconds=seconds)
        self._on_publish(opened.unit)


def scored_tokens(rows: Sequence[Finished]) -> int:
    """The tokens of the continuations of finished rows."""
    scorings = (row.scoring for row in rows if isinstance(row, RowInFlight) and row.scoring is not None)
    return sum(len(ids) for scoring in scorings for ids in scoring.continuations)


def _unit_index(sized: tuple[Any, int]) -> int:
    return int(sized[0].key.unit.index)


def _batch_bytes(batch: pa.RecordBatch) -> int:
    return int(batch.nbytes) + BATCH_OVERHEAD
