"""Segments and parts: which rows count, what is reported, and that several processes make one part."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job.faulty_storage import Countdown, SteppingStorage
from rwkv_batch.job.output import commit
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.output.storage import LocalStorage, StorageError

from ..conftest import Job
from ..prepared import ROWS, commit_all, files_of, forget, prepared, undisturbed, units_of


class ReadingStorage(SteppingStorage):
    """A storage that also steps at reads: another process may act between listing a folder and opening a file."""

    def list(self, folder: str) -> list[str]:
        names = super().list(folder)
        self.at_step("listed")
        return names

    def open(self, path: str) -> Any:
        self.at_step("before open")
        return super().open(path)


def test_foreign_files_in_the_state_folder_are_left_alone(small: Job, caplog: pytest.LogCaptureFixture) -> None:
    small.set(output__rows_per_part=ROWS)
    ready = prepared(small)
    (unit,) = units_of(ready)
    files = files_of(small, ready)
    commit_all(ready, files, unit, [0, 1])
    foreign = small.state / "unit-00000" / "notes.txt"
    foreign.write_text("mine")
    assert small.run() == 0
    assert foreign.read_text() == "mine"
    assert [path.name for path in foreign.parent.iterdir()] == ["notes.txt"]
    assert "is damaged" not in caplog.text and "damaged" not in (small.state / "log.jsonl").read_text()


def test_segments_are_dropped_after_their_part_is_safe(small: Job) -> None:
    acts: list[str] = []

    class Recording(LocalStorage):
        def atomic_write(self, path: str, data: Any, *, exclusive: bool = False) -> bool:
            written = super().atomic_write(path, data, exclusive=exclusive)
            acts.append(f"wrote {Path(path).suffix}")
            return written

        def remove(self, path: str) -> None:
            super().remove(path)
            acts.append(f"removed {Path(path).suffix}")

    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready, Recording(ready.folders.file("tmp")))
    commit_all(ready, files, unit, [0, 1])
    commit_all(ready, files, unit, [2])
    files.publish(unit, ready.source)
    assert acts == ["wrote .seg", "wrote .seg", "wrote .json", "wrote .parquet", "removed .seg", "removed .seg"]


def test_torn_segments_are_set_aside_and_reported(small: Job, caplog: pytest.LogCaptureFixture) -> None:
    small.set(output__rows_per_part=ROWS)
    parts = undisturbed(small)
    ready = prepared(small)
    (unit,) = units_of(ready)
    files = files_of(small, ready)
    commit_all(ready, files, unit, [0, 1])
    commit_all(ready, files, unit, [2, 3])
    first, second = sorted(small.state.glob("unit-00000/*.seg"))
    whole = second.read_bytes()
    for size in (*range(64), *range(64, len(whole), 97), *range(len(whole) - 64, len(whole))):
        second.write_bytes(whole[:size])
        reader = files_of(small, ready)
        assert reader.committed_rows(unit) == {0, 1}, f"cut to {size} bytes"
        assert reader.damaged == [str(second)]
        assert not second.exists()
    for flipped in range(0, len(whole), 7):
        second.write_bytes(whole[:flipped] + bytes([whole[flipped] ^ 0xFF]) + whole[flipped + 1 :])
        assert files_of(small, ready).committed_rows(unit) in ({0, 1}, {0, 1, 2, 3}), f"byte {flipped}"
    shutil.rmtree(small.state / "damaged")
    second.write_bytes(whole[: len(whole) // 2])
    assert small.run() == 0
    assert small.parts() == parts
    assert f"{second} is damaged" in caplog.text
    (aside,) = (small.state / "damaged").iterdir()
    assert aside.read_bytes() == whole[: len(whole) // 2]
    assert f"it is now {aside}, and its rows are made again" in caplog.text
    assert str(second) in (small.state / "report.json").read_text()
    assert first.exists() is False


def test_a_segment_of_another_job_is_ignored(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    commit_all(ready, files_of(small, ready), unit, [0, 1])
    other = prepared(small.set(sampling__seed=1))
    assert files_of(small, other).committed_rows(unit) == set()
    assert files_of(small, ready).committed_rows(unit) == {0, 1}


def test_of_two_segments_with_a_row_the_first_one_wins(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    one, two = files_of(small, ready), files_of(small, ready)
    schema = ready.form.results.insert(0, pa.field("row", pa.int64()))

    def batch(completion: str, keys: list[tuple[int, int]]) -> list[pa.RecordBatch]:
        blank = {"finish_reason": "stop", "status": "ok", "completion": completion}
        return [pa.RecordBatch.from_pylist([{"row": r, "sample_index": s, **blank} for r, s in keys], schema)]

    one.commit(unit, batch("first", [(0, 0)]))
    two.commit(unit, [])
    two.commit(unit, batch("second", [(r, s) for r in (2, 1, 0) for s in (0, 1)]))
    two.publish(unit, ready.source)
    rows = [(row["id"], row["sample_index"], row["completion"]) for row in small.rows()]
    second = [(row, sample, "second") for row in (1, 2) for sample in (0, 1)]
    assert rows == [(0, 0, "first"), *second]


def test_a_result_replaces_an_error(small: Job) -> None:
    """Of two results, or of two errors, the first one counts."""
    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready)
    schema = ready.form.results.insert(0, pa.field("row", pa.int64()))

    def commit(name: str, done: list[int], failed: list[int]) -> None:
        records = [{"row": row, "sample_index": s, "status": "ok", "completion": name} for row in done for s in (0, 1)]
        records += [{"row": row, "sample_index": 0, "status": "error", "error": name} for row in failed]
        files.commit(unit, [pa.RecordBatch.from_pylist(records, schema)])

    commit("first", [0], [2, 1])
    commit("second", [1], [0, 2])
    commit("third", [0, 1], [])
    files.publish(unit, ready.source)
    found = [(row["id"], row["sample_index"], row["completion"] or row["error"]) for row in small.rows()]
    assert found == [(0, 0, "first"), (0, 1, "first"), (1, 0, "second"), (1, 1, "second"), (2, 0, "first")]


def test_two_runs_of_one_unit_publish_the_same_part(small: Job) -> None:
    """The other run publishes, and drops all segments, between any two of this one's steps."""
    small.set(output__rows_per_part=ROWS)
    parts = undisturbed(small)
    ready = prepared(small)
    (unit,) = units_of(ready)
    step = 0
    is_over = False
    while not is_over:
        step += 1
        other = files_of(small, ready)

        def publish(other: JobFiles = other) -> None:
            commit_all(ready, other, unit, range(ROWS))
            other.publish(unit, ready.source)

        countdown = Countdown(step, publish)
        mine = files_of(small, ready, ReadingStorage(ready.folders.file("tmp"), countdown))
        commit_all(ready, mine, unit, [0, 3])
        commit_all(ready, mine, unit, [1, 2])
        assert mine.publish(unit, ready.source).rows == ROWS
        assert not mine.damaged
        assert small.parts() == parts, f"at step {step}"
        is_over = countdown.left > 0
        forget(small)
    assert step > 15


def test_rows_that_vanish_are_noticed(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready)
    commit_all(ready, files, unit, [0, 1])
    with pytest.raises(RuntimeError, match="1 committed rows"):
        files.publish(unit, ready.source)
    assert not small.output.exists()


def test_an_input_that_shrinks_during_the_run_is_noticed(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready)
    commit_all(ready, files, unit, range(3))
    short = prepared(small.input("short.parquet", id=[0], prompt=["prompt 0"])).source
    with pytest.raises(RuntimeError, match="the input has lost rows"):
        files.publish(unit, short)


def test_a_file_that_may_not_be_read_is_no_damaged_one(small: Job) -> None:
    """The run ends with the error, and the file stays where it is."""

    class Closed(LocalStorage):
        def open(self, path: str) -> Any:
            if path.endswith((".seg", ".parquet")):
                raise StorageError(path, "read", PermissionError(errno.EACCES, "Permission denied"))
            return super().open(path)

    ready = prepared(small)
    unit = units_of(ready)[0]
    commit_all(ready, files_of(small, ready), unit, [0, 1, 2])
    closed = files_of(small, ready, Closed(ready.folders.file("tmp")))
    for act in (closed.committed_rows, closed.part):
        with pytest.raises(StorageError, match="cannot be read"):
            act(unit)
    assert len(list(small.state.glob("unit-*/*.seg"))) == 1 and not closed.damaged


def test_results_in_memory_have_room() -> None:
    assert commit._roomy_type(pa.string()) == pa.large_string()
    assert commit._roomy_type(pa.list_(pa.list_(pa.string()))) == pa.large_list(pa.large_list(pa.large_string()))
    assert commit._roomy_type(pa.int32()) == pa.int32()
