"""A thread that commits finished rows every few seconds and publishes units as they become complete."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import pyarrow as pa

from .commit import JobFiles
from .plan import Unit
from .results import Record

QUEUE_ITEMS = 1024
BUFFER_BYTES = 32 << 20


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
    pending: list[Record] = field(default_factory=list)
    pending_rows: int = 0


class Writer:
    """Where finished rows go. Memory is bounded: `add` waits while the disk is slower than the engine.

    Args:
        files: the job's segments and parts.
        read_input: a unit's rows with the columns that parts repeat.
        flush_seconds: no finished row waits longer than this to be committed.
        log: takes an event's name and its fields.

    On leaving the `with` block everything that was added is committed, also when an exception passes by.
    """

    def __init__(
        self,
        files: JobFiles,
        read_input: Callable[[Unit], Iterable[pa.RecordBatch]],
        flush_seconds: float,
        log: Callable[..., None],
    ) -> None:
        self.counts = Counts()
        self._files = files
        self._read_input = read_input
        self._flush_seconds = flush_seconds
        self._log = log
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_ITEMS)
        self._units: dict[int, _OpenUnit] = {}
        self._buffered_bytes = 0
        self._flush_at: float | None = None

    def __enter__(self) -> Writer:
        self._executor = ThreadPoolExecutor(1, "rwkv_batch-writer")
        self._thread = self._executor.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._put(None)
            self._thread.result()
        finally:
            self._executor.shutdown()

    def begin(self, unit: Unit, committed: int) -> None:
        """Announce a unit of which earlier runs have committed some rows; `add` will bring the others."""
        self._put(partial(self._begin, unit, committed))

    def add(self, unit: Unit, row: int, records: Sequence[Record]) -> None:
        """Take one finished row: a record for each sample.

        Raises:
            Exception: whatever ended the thread, for example OSError from a full disk.
        """
        self._put(partial(self._add, unit, row, records))

    def _put(self, action: Callable[[], None] | None) -> None:
        while True:
            if self._thread.done():
                self._thread.result()
                raise RuntimeError("the writer is closed")
            try:
                return self._queue.put(action, timeout=1.0)
            except queue.Full:
                continue

    def _run(self) -> None:
        while True:
            try:
                wait = None if self._flush_at is None else max(0.0, self._flush_at - time.monotonic())
                action = self._queue.get(timeout=wait)
            except queue.Empty:
                action = self._flush
            if action is None:
                return self._flush()
            action()

    def _begin(self, unit: Unit, committed: int) -> None:
        self._units[unit.index] = _OpenUnit(unit, unit.num_rows - committed)
        self.counts.resume(committed)
        self._publish_if_complete(self._units[unit.index])

    def _add(self, unit: Unit, row: int, records: Sequence[Record]) -> None:
        opened = self._units[unit.index]
        opened.pending += [{"row": row, **record} for record in records]
        opened.pending_rows += 1
        opened.missing -= 1
        self.counts.done += 1
        self.counts.errors += records[0]["status"] == "error"
        self._buffered_bytes += sum(1000 + 4 * len(record.get("completion") or "") for record in records)
        if self._flush_at is None:
            self._flush_at = time.monotonic() + self._flush_seconds
        if self._buffered_bytes > BUFFER_BYTES or time.monotonic() >= self._flush_at:
            self._flush()
        self._publish_if_complete(opened)

    def _flush(self) -> None:
        for opened in list(self._units.values()):
            self._commit(opened)
        self._buffered_bytes = 0
        self._flush_at = None

    def _commit(self, opened: _OpenUnit) -> None:
        if not opened.pending:
            return
        start = time.monotonic()
        self._files.commit(opened.unit, opened.pending)
        self.counts.committed += opened.pending_rows
        self._log("commit", unit=opened.unit.index, rows=opened.pending_rows, seconds=time.monotonic() - start)
        opened.pending, opened.pending_rows = [], 0

    def _publish_if_complete(self, opened: _OpenUnit) -> None:
        if opened.missing:
            return
        self._commit(opened)
        start = time.monotonic()
        part = self._files.publish(opened.unit, self._read_input(opened.unit))
        del self._units[opened.unit.index]
        seconds = time.monotonic() - start
        self._log("publish", part=part.name, rows=part.rows, errors=part.errors, bytes=part.bytes, seconds=seconds)
