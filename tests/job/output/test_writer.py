"""The writer's thread: when it commits, how much it holds, and that its failures reach the run."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job import fake_llm
from rwkv_batch.errors import RowError
from rwkv_batch.job.input.rows import RowKey
from rwkv_batch.job.output import writer as module
from rwkv_batch.job.output.commit import Part
from rwkv_batch.job.output.results import Results
from rwkv_batch.job.output.writer import Writer
from rwkv_batch.job.plan import Unit
from rwkv_batch.rows import ErrorRow, GenerateRow, RowInFlight
from rwkv_batch.sampling_params import SamplingParams

UNIT = Unit(0, 0, 100)
SCHEMA = pa.schema([("status", pa.string()), ("token_ids", pa.list_(pa.int32())), ("error", pa.string())])


class Files:
    """Stands in for JobFiles: remembers what was committed, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.commits: list[list[int]] = []
        self.published: list[int] = []
        self.failure = failure

    def commit(self, unit: Unit, batches: Sequence[pa.RecordBatch]) -> None:
        if self.failure:
            raise self.failure
        self.commits.append([row for batch in batches for row in batch["row"].to_pylist()])

    def publish(self, unit: Unit, source: object) -> Part:
        self.published.append(unit.index)
        return Part("part", unit.num_rows, 0, 0)


def make(files: Files, flush_seconds: float = 1000.0) -> Writer:
    to_columns = Results("generate", SCHEMA, None).batch
    return Writer(files, None, to_columns, flush_seconds, lambda *_, **__: None)  # type: ignore[arg-type]


def ok(*rows: int, unit: Unit = UNIT, tokens: int = 1, prompt: str = "", samples: int = 1) -> list[Any]:
    finished = []
    for row in rows:
        ids = np.zeros(len(prompt), np.int32)
        request: list[Any] = [fake_llm.Request(ids, sample) for sample in range(samples)]
        made = RowInFlight(GenerateRow(RowKey(unit, row), row, prompt, SamplingParams()), request, prompt)
        made.completions += [fake_llm.Completion(one, np.zeros(tokens, np.int32), np.zeros(tokens)) for one in request]
        finished.append(made)
    return finished


def bad(row: int, message: str = "") -> ErrorRow:
    return ErrorRow(RowKey(UNIT, row), row, RowError("bad_type", message))


def wait_for(condition: Callable[[], object]) -> None:
    """A wait without an end is ended by pytest-timeout."""
    while not condition():
        time.sleep(0.005)


def test_rows_are_committed_after_flush_seconds_though_no_other_row_comes() -> None:
    files = Files()
    with make(files, flush_seconds=0.05) as writer:
        writer.begin(UNIT, 0)
        writer.add(ok(1))
        wait_for(lambda: files.commits)
        assert (files.commits, writer.counts.committed) == ([[1]], 1)


def test_everything_is_committed_at_the_end_even_when_the_run_fails() -> None:
    files = Files()
    with pytest.raises(RuntimeError, match="engine"), make(files) as writer:
        writer.begin(UNIT, 0)
        writer.add(ok(1))
        writer.add(ok(2))
        raise RuntimeError("engine")
    assert (files.commits, files.published) == ([[1, 2]], [])


def test_a_large_buffer_is_committed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", 50_000)
    files = Files()
    with make(files) as writer:
        writer.begin(UNIT, 0)
        for row in range(10):
            writer.add(ok(row, tokens=1200))  # about 16 kB
    assert [len(rows) for rows in files.commits] == [4, 4, 2]


def test_rows_of_a_fast_engine_are_committed_together_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row comes every second without a pause, and rows are due after 9.5 s: a commit has 11 rows."""
    seconds = iter(range(10_000))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    files = Files()
    with make(files, flush_seconds=9.5) as writer:
        writer.begin(UNIT, 0)
        for row in range(30):
            now[0] = float(next(seconds))
            writer.add(ok(row))
            wait_for(lambda done=row + 1: writer.counts.done == done and writer._queue.empty())  # type: ignore[misc]
    assert [len(rows) for rows in files.commits] == [11, 11, 8]


def test_a_stream_that_never_stops_is_committed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows wait in the queue before the thread takes the second one; the clock goes on by a second a row."""
    monkeypatch.setattr(module, "BATCH_ROWS", 1)
    now, all_here = [0.0], threading.Event()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    files = Files()
    with make(files, flush_seconds=9.5) as writer:
        to_columns = writer._to_columns

        def tick(rows: Sequence[Any]) -> pa.RecordBatch:
            assert all_here.wait(60)
            now[0] += 1
            return to_columns(rows)

        writer._to_columns = tick
        writer.begin(UNIT, 0)
        for row in range(30):
            writer.add(ok(row))
        all_here.set()
    assert [len(rows) for rows in files.commits] == [10, 10, 10]


def test_columns_are_made_of_many_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 8)
    sizes: list[int] = []
    files = Files()
    with make(files) as writer:
        to_columns = writer._to_columns
        writer._to_columns = lambda rows: (sizes.append(len(rows)), to_columns(rows))[1]
        writer.begin(UNIT, 0)
        writer.add([*ok(0, 1, 2), bad(3)])
        for row in range(4, 20):
            writer.add(ok(row))
    assert (sizes, writer.counts.errors, writer.counts.committed) == ([8, 8, 4], 1, 20)
    assert sorted(row for rows in files.commits for row in rows) == list(range(20))


@pytest.mark.parametrize(
    "rows",
    [
        lambda i: ok(i),
        lambda i: ok(i, tokens=64),
        lambda i: ok(i, tokens=5000),
        lambda i: ok(i, prompt="x" * 20_000),
        lambda i: ok(i, samples=20),
        lambda i: [bad(i, "m" * 3000 + str(i))],
    ],
    ids=["short", "64 tokens", "long", "long prompts", "samples", "errors"],
)
def test_no_more_is_held_than_is_counted(rows: Callable[[int], list[Any]]) -> None:
    """Rows that are not committed take no more memory in Python, numpy and Arrow than the writer counts for them."""
    unit = Unit(0, 0, 10**6)
    tracemalloc.start()
    try:
        with make(Files()) as writer:
            writer.begin(unit, 0)
            rows(0)
            wait_for(writer._queue.empty)
            before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
            count = 0
            for i in range(700):
                some = rows(i)
                for row in some:
                    key = RowKey(unit, i)
                    object.__setattr__(row if isinstance(row, ErrorRow) else row.row, "key", key)
                writer.add(some)
                count += len(some)
            del some, row
            wait_for(lambda: writer.counts.done == count and writer._queue.empty())
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
            counted = writer.buffered_bytes
        assert held <= counted * 1.1 + 30_000, (held, counted)
        assert counted < 8 * held, "what is counted is no measure of what is held"
        assert writer.buffered_bytes == 0
    finally:
        tracemalloc.stop()


def test_units_are_published_when_their_last_row_comes_whatever_the_order() -> None:
    files = Files()
    units = [Unit(0, 0, 2), Unit(1, 2, 4), Unit(2, 4, 4), Unit(3, 4, 6)]
    with make(files) as writer:
        for unit, committed in zip(units, (0, 1, 0, 2), strict=True):
            writer.begin(unit, committed)
        writer.add(ok(3, unit=units[1]))
        writer.add(ok(1, unit=units[0]))
        wait_for(lambda: writer.counts.done == 5)
        assert files.published == [2, 3, 1]
        writer.add(ok(0, unit=units[0]))
    assert files.published == [2, 3, 1, 0]
    assert (writer.counts.resumed, writer.counts.committed) == (3, 6)


def test_a_failure_of_the_disk_ends_the_run_at_its_next_row() -> None:
    with pytest.raises(OSError, match="full"), make(Files(OSError("full")), flush_seconds=0) as writer:
        writer.begin(UNIT, 0)
        writer.add(ok(0))
        wait_for(writer._thread.done)
        writer.add(ok(1))
        pytest.fail("no row was refused")


def test_add_waits_for_a_slow_disk_and_then_fails_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk answers when the queue is full, so a queue without a bound never gets an answer before its last row."""
    monkeypatch.setattr(module, "QUEUE_BYTES", 40_000)
    files, row = Files(), 0

    def commit(*_: object) -> None:
        wait_for(lambda: writer._queue.full() or row == 99)
        raise OSError("gone")

    monkeypatch.setattr(files, "commit", commit)
    with pytest.raises(OSError, match="gone"), make(files, flush_seconds=0) as writer:
        writer.begin(UNIT, 0)
        for row in range(100):
            writer.add(ok(row, tokens=1000))
    assert row < 10


def test_a_list_without_rows_is_nothing() -> None:
    files = Files()
    with make(files) as writer:
        writer.begin(UNIT, 0)
        writer.add([])
        writer.add(ok(1))
    assert files.commits == [[1]]


def test_an_interrupted_end_leaves_no_thread_behind() -> None:
    """KeyboardInterrupt while the end waits: the thread notices that nobody waits for it any more."""
    files = Files()
    writer = make(files)

    def put(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), writer:
        writer.begin(UNIT, 0)
        writer.add(ok(1))
        writer._put = put  # type: ignore[assignment]
    writer._thread.result(60)
