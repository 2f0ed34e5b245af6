"""The writer's thread: when it commits, and that its failures reach the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from rwkv_batch.data import writer as module
from rwkv_batch.data.commit import Part
from rwkv_batch.data.plan import Unit
from rwkv_batch.data.writer import Writer

UNIT = Unit(0, 0, 100)


class Files:
    """Stands in for JobFiles: remembers what was committed, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.commits: list[list[int]] = []
        self.published: list[int] = []
        self.failure = failure

    def commit(self, unit: Unit, records: list[dict[str, Any]]) -> None:
        if self.failure:
            raise self.failure
        self.commits.append([record["row"] for record in records])

    def publish(self, unit: Unit, source: object) -> Part:
        self.published.append(unit.index)
        return Part("part", unit.num_rows, 0, 0)


def make(files: Files, flush_seconds: float = 1000.0) -> Writer:
    return Writer(files, lambda unit: [], flush_seconds, lambda *_, **__: None)  # type: ignore[arg-type]


def ok(text: str = "") -> list[dict[str, Any]]:
    return [{"status": "ok", "completion": text}]


def wait_for(condition: Callable[[], object]) -> None:
    """A wait without an end is ended by pytest-timeout."""
    while not condition():
        time.sleep(0.005)


def test_rows_are_committed_after_flush_seconds_though_no_other_row_comes() -> None:
    files = Files()
    with make(files, flush_seconds=0.05) as writer:
        writer.begin(UNIT, 0)
        writer.add(UNIT, 1, ok())
        wait_for(lambda: files.commits)
        assert (files.commits, writer.counts.committed) == ([[1]], 1)


def test_everything_is_committed_at_the_end_even_when_the_run_fails() -> None:
    files = Files()
    with pytest.raises(RuntimeError, match="engine"), make(files) as writer:
        writer.begin(UNIT, 0)
        writer.add(UNIT, 1, ok())
        writer.add(UNIT, 2, ok())
        raise RuntimeError("engine")
    assert (files.commits, files.published) == ([[1, 2]], [])


def test_a_large_buffer_is_committed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", 10_000)
    files = Files()
    with make(files) as writer:
        writer.begin(UNIT, 0)
        for row in range(10):
            writer.add(UNIT, row, ok("x" * 1000))
    assert [len(rows) for rows in files.commits] == [3, 3, 3, 1]


def test_units_are_published_when_their_last_row_comes_whatever_the_order() -> None:
    files = Files()
    units = [Unit(0, 0, 2), Unit(1, 2, 4), Unit(2, 4, 4), Unit(3, 4, 6)]
    with make(files) as writer:
        for unit, committed in zip(units, (0, 1, 0, 2), strict=True):
            writer.begin(unit, committed)
        writer.add(units[1], 3, ok())
        writer.add(units[0], 1, ok())
        wait_for(lambda: writer.counts.done == 5)
        assert files.published == [2, 3, 1]
        writer.add(units[0], 0, ok())
    assert files.published == [2, 3, 1, 0]
    assert (writer.counts.resumed, writer.counts.committed) == (3, 6)


def test_a_failure_of_the_disk_ends_the_run_at_its_next_row() -> None:
    with pytest.raises(OSError, match="full"), make(Files(OSError("full")), flush_seconds=0) as writer:
        writer.begin(UNIT, 0)
        writer.add(UNIT, 0, ok())
        wait_for(writer._thread.done)
        writer.add(UNIT, 1, ok())
        pytest.fail("no row was refused")


def test_add_waits_for_a_slow_disk_and_then_fails_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk answers when the queue is full, so a queue without a bound never gets an answer before its last row."""
    monkeypatch.setattr(module, "QUEUE_ITEMS", 2)
    files, row = Files(), 0

    def commit(*_: object) -> None:
        wait_for(lambda: writer._queue.full() or row == 99)
        raise OSError("gone")

    files.commit = commit  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"), make(files, flush_seconds=0) as writer:
        writer.begin(UNIT, 0)
        for row in range(100):
            writer.add(UNIT, row, ok())
    assert row < 10
