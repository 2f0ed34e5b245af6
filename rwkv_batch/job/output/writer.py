"""A thread that commits finished rows every few seconds and publishes units as they become complete."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa

from ...rows import ErrorRow, Finished
from ..plan import Unit
from .commit import JobFiles
from .results import held_bytes

QUEUE_BYTES = 16 << 20
"""`add` waits while so many bytes of rows have not been taken by the thread."""
BUFFER_BYTES = 32 << 20
"""Rows that hold more are committed before it is time."""
BATCH_ROWS = 256
"""So many rows of a unit become columns together; fewer only when they are committed."""
BATCH_OVERHEAD = 20_000
"""Bytes that the columns of a batch hold beside their values, about."""
LOOK_SECONDS = 1.0
"""How long it takes at most until a thread that waits notices a signal, or that it has been abandoned."""


@dataclass
class Counts:
    """Rows of this process's units.

    Args:
        resumed: committed by earlier runs.
        done: finished, by earlier runs or this one.
        committed: durable.
        errors: finished by this run as errors.
    """

    resumed: int = 0
    done: int = 0
    committed: int = 0
    errors: int = 0

    def resume(self, rows: int) -> None:
        """Count rows that an earlier run has committed."""
        self.resumed += rows
        self.done += rows
        self.committed += rows


@dataclass
class _OpenUnit:
    unit: Unit
    missing: int
    rows: list[Finished] = field(default_factory=list)
    """Finished rows that are not in columns yet."""
    rows_bytes: int = 0
    batches: list[pa.RecordBatch] = field(default_factory=list)
    """Rows that are in columns and not committed yet."""
    num_pending: int = 0
    """Rows that are not committed yet."""


class _Item(NamedTuple):
    action: Callable[[], None] | None
    """None ends the thread."""
    bytes: int = 1


class _Queue(queue.Queue[_Item]):
    """A queue whose size is the bytes that its items hold."""

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
    """Where finished rows go. Memory is bounded: `add` waits while the disk is slower than the engine.

    Args:
        files: the job's segments and parts.
        read_input: a unit's rows with the columns that parts repeat.
        to_columns: makes the results of finished rows, as `Results.batch` does.
        flush_seconds: no finished row waits longer than this to be committed.
        log: takes an event's name and its fields.

    On leaving the `with` block everything that was added is committed, also when an exception passes by. Where another
    one, such as a second Ctrl-C, interrupts that, the thread ends by itself.
    """

    def __init__(
        self,
        files: JobFiles,
        read_input: Callable[[Unit], Iterable[pa.RecordBatch]],
        to_columns: Callable[[Sequence[Finished]], pa.RecordBatch],
        flush_seconds: float,
        log: Callable[..., None],
    ) -> None:
        self.counts = Counts()
        self.buffered_bytes = 0
        """About what the rows hold that the thread has taken and not committed."""
        self._files = files
        self._read_input = read_input
        self._to_columns = to_columns
        self._flush_seconds = flush_seconds
        self._log = log
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
            while not self._thread.done():  # a signal may come between Python's look for signals and the wait
                wait([self._thread], LOOK_SECONDS)
            self._thread.result()
        finally:
            self._is_abandoned = True
            self._executor.shutdown(wait=False)

    def begin(self, unit: Unit, committed: int) -> None:
        """Announce a unit of which earlier runs have committed some rows; `add` will bring the others."""
        self._put(_Item(partial(self._begin, unit, committed)))

    def add(self, rows: Sequence[Finished]) -> None:
        """Take finished rows, of any units that have been announced; a row's key has its unit.

        Raises:
            Exception: whatever ended the thread, for example OSError from a full disk.
        """
        sizes = list(map(held_bytes, rows))
        self._put(_Item(partial(self._add, rows, sizes), 1 + sum(sizes)))

    def _put(self, item: _Item) -> None:
        while True:
            if self._thread.done():
                self._thread.result()
                raise RuntimeError("the writer is closed")
            try:
                return self._queue.put(item, timeout=1.0)
            except queue.Full:
                continue

    def _run(self) -> None:
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
        if not opened.rows:
            return
        batch = self._to_columns(opened.rows)
        opened.batches.append(batch)
        self.buffered_bytes += _batch_bytes(batch) - opened.rows_bytes
        opened.rows, opened.rows_bytes = [], 0

    def _flush_if_due(self) -> None:
        if self._flush_at is not None and time.monotonic() >= self._flush_at:
            self._flush()

    def _flush(self) -> None:
        for opened in list(self._units.values()):
            self._commit(opened)
        self._flush_at = None

    def _commit(self, opened: _OpenUnit) -> None:
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
        if opened.missing or opened.unit.index not in self._units:
            return
        self._commit(opened)
        start = time.monotonic()
        part = self._files.publish(opened.unit, self._read_input(opened.unit))
        del self._units[opened.unit.index]
        seconds = time.monotonic() - start
        self._log("publish", part=part.name, rows=part.rows, errors=part.errors, bytes=part.bytes, seconds=seconds)


def _unit_index(sized: tuple[Any, int]) -> int:
    return int(sized[0].key.unit.index)


def _batch_bytes(batch: pa.RecordBatch) -> int:
    return int(batch.nbytes) + BATCH_OVERHEAD
