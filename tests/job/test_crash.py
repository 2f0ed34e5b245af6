"""The promise of the commit protocol: whatever dies, and wherever, nothing committed is lost and no row is doubled."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from job import fake_llm
from job.faulty_storage import EXIT_CRASHED, Countdown, SteppingStorage, crash, fail

from rwkv_batch.job.load import load_job
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.output.results import Results
from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.plan import Unit
from rwkv_batch.job.prepare import Prepared, prepare
from rwkv_batch.rows import GenerateRow
from rwkv_batch.text.detokenizer import Detokenizer

from .conftest import Job

ROWS = 4


@pytest.fixture
def small(job: Job) -> Job:
    """4 rows in two parts, a segment for each row."""
    job.input(id=list(range(ROWS)), prompt=[f"prompt {i}" for i in range(ROWS)])
    return job.set(output__rows_per_part=3, output__flush_seconds=0, sampling__n=2)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that the engine serves in this process."""
    rows: list[int] = []
    original = fake_llm.Serving._complete

    def complete(self: Any, row: Any) -> None:
        rows.append(row.row.row)
        original(self, row)

    monkeypatch.setattr(fake_llm.Serving, "_complete", complete)
    return rows


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """Makes jobs use storage that calls a function at every durable step."""

    def install(act: Callable[[str], None]) -> None:
        monkeypatch.setattr("rwkv_batch.job.execute.LocalStorage", lambda folder: SteppingStorage(folder, act))

    return install


def undisturbed(job: Job) -> dict[str, bytes]:
    assert job.run() == 0
    parts = job.parts()
    forget(job)
    return parts


def forget(job: Job) -> None:
    shutil.rmtree(job.output, ignore_errors=True)
    shutil.rmtree(job.state, ignore_errors=True)


def prepared(job: Job) -> Prepared:
    return prepare(load_job(job.write()), fake_llm.inspect_model)


def files_of(job: Job, ready: Prepared, storage: LocalStorage | None = None) -> JobFiles:
    storage = storage or LocalStorage(ready.folders.file("tmp"))
    return JobFiles(storage, ready.folders.output, ready.folders.state, ready.plan, ready.form)


def units_of(ready: Prepared) -> list[Unit]:
    return [ready.plan.unit(index) for index in range(ready.plan.num_units)]


def committed(job: Job) -> set[int]:
    """Rows that a crash must not lose: in segments or in parts."""
    ready = prepared(job)
    files = files_of(job, ready)
    rows: set[int] = set()
    for unit in units_of(ready):
        rows |= set(range(unit.start, unit.stop)) if files.part(unit) else files.committed_rows(unit)
    return rows


def in_child(act: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(act())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def assert_visible_rows_are_whole(job: Job, parts: dict[str, bytes]) -> None:
    """Readers see parts of the final content or nothing, at every moment."""
    if job.output.exists():
        assert job.parts().items() <= parts.items()


def test_a_crash_at_every_durable_step(small: Job, served: list[int], at_step: Any) -> None:
    parts = undisturbed(small)
    step = 0
    while True:
        step += 1
        at_step(Countdown(step, crash))
        code = in_child(small.run)
        assert code in (0, EXIT_CRASHED)
        assert_visible_rows_are_whole(small, parts)
        kept = committed(small)
        served.clear()
        at_step(lambda _: None)
        assert small.run() == 0, f"crash at step {step}"
        assert small.parts() == parts, f"crash at step {step}"
        assert sorted(served) == sorted(set(range(ROWS)) - kept), f"crash at step {step}"
        assert not list(small.state.glob("tmp/*")) and not list(small.state.glob("unit-*"))
        assert (small.state / "_SUCCESS.json").exists() and (small.state / "report.html").exists()
        forget(small)
        if code == 0:
            break
    assert step > 70


def test_crash_after_crash(small: Job, at_step: Any, soak_seed: int) -> None:
    parts = undisturbed(small)
    crashes = 0
    for trial in range(8):
        dice = random.Random(8 * soak_seed + trial)
        before: set[int] = set()
        code = EXIT_CRASHED
        while code == EXIT_CRASHED:
            at_step(Countdown(dice.randint(1, 40), crash))
            code = in_child(small.run)
            crashes += code == EXIT_CRASHED
            assert_visible_rows_are_whole(small, parts)
            now = committed(small)
            assert before <= now
            before = now
        assert (code, small.parts()) == (0, parts)
        forget(small)
    assert crashes > 20


def test_the_disk_fails_at_every_durable_step(
    small: Job, served: list[int], at_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = undisturbed(small)
    failures, step, is_over = 0, 0, False
    while not is_over:
        step += 1
        code = errno.ENOSPC if step % 2 else errno.EIO
        countdown = Countdown(step, fail(code))
        at_step(countdown)
        exit_code = small.run()
        is_over = countdown.left > 0
        message = capsys.readouterr().err
        if exit_code:
            failures += 1
            assert exit_code == 1
            assert os.strerror(code) in message and "start the same command again" in message
            assert "Traceback" not in message
        assert not list(small.state.glob("tmp/*"))
        kept = committed(small)
        served.clear()
        at_step(lambda _: None)
        assert small.run() == 0
        assert small.parts() == parts, f"failure at step {step}"
        assert sorted(served) == sorted(set(range(ROWS)) - kept)
        forget(small)
    assert failures > 50


@pytest.mark.parametrize("exclusive", [False, True])
def test_bytes_are_safe_before_their_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """What a power cut keeps is what was synced, in this order; a killed process would not show the difference."""
    trace: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(descriptor: int) -> None:
        trace.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real["fsync"](descriptor)

    def name(source: str, target: str) -> None:
        trace.append((source, target))
        real["link" if exclusive else "replace"](source, target)

    storage = LocalStorage(str(tmp_path / "tmp"))
    storage.make_folder(str(tmp_path / "tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "link" if exclusive else "replace", name)
        assert storage.atomic_write(str(tmp_path / "x"), b"data", exclusive=exclusive)
    (first, temporary), (source, target), last = trace
    assert (first, temporary.startswith(f"{tmp_path}/tmp/x.")) == ("sync", True)
    assert (source, target) == (temporary, str(tmp_path / "x"))
    assert last == ("sync", str(tmp_path))


def test_the_name_of_a_new_folder_is_safe_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name was lost to a power cut takes its files with it."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    storage = LocalStorage(str(tmp_path / "tmp"))
    storage.make_folder(str(tmp_path / "tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert storage.atomic_write(str(tmp_path / "a" / "b" / "x"), b"data")
    assert [path.removeprefix(f"{tmp_path}") for path in synced[1:]] == ["", "/a", "/a/b"]
    assert synced[0].startswith(f"{tmp_path}/tmp/x.")


def test_no_file_stays_open(small: Job) -> None:
    def opened() -> list[str]:
        return sorted(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    storage = LocalStorage(str(small.folder / "tmp"))
    storage.atomic_write(str(small.folder / "a" / "x"), b"data")
    before = opened()
    for exclusive in (False, True):
        storage.atomic_write(str(small.folder / "a" / "x"), b"data", exclusive=exclusive)
        storage.atomic_write(str(small.folder / "b" / f"y{exclusive}"), b"data", exclusive=exclusive)
    storage.sweep()
    assert opened() == before


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
    assert "cannot be read" not in caplog.text and "damaged" not in (small.state / "log.jsonl").read_text()


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
    files.publish(unit, ready.read_passed(unit))
    assert acts == ["wrote .seg", "wrote .seg", "wrote .parquet", "removed .seg", "removed .seg"]


def commit_all(ready: Prepared, files: JobFiles, unit: Unit, rows: Any) -> None:
    """One segment with these rows, as a run of the job would commit them."""
    llm = fake_llm.LLM.from_summary(ready.model)
    some = [GenerateRow(None, row, f"prompt {row}", ready.job.sampling) for row in rows]
    finished = [row for rows in llm.serving.run([some]) for row in rows]
    detokenizer = Detokenizer(fake_llm.Tokenizer.token_bytes)
    files.commit(unit, [Results("generate", ready.form.results, detokenizer).batch(finished)])


def test_torn_segments_are_ignored_and_reported(small: Job, caplog: pytest.LogCaptureFixture) -> None:
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
        assert reader.damaged == {str(second)}
    for flipped in range(0, len(whole), 7):
        second.write_bytes(whole[:flipped] + bytes([whole[flipped] ^ 0xFF]) + whole[flipped + 1 :])
        assert files_of(small, ready).committed_rows(unit) in ({0, 1}, {0, 1, 2, 3}), f"byte {flipped}"
    second.write_bytes(whole[: len(whole) // 2])
    assert small.run() == 0
    assert small.parts() == parts
    assert f"{second} cannot be read and is ignored" in caplog.text
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
    two.publish(unit, ready.read_passed(unit))
    rows = [(row["id"], row["sample_index"], row["completion"]) for row in small.rows()]
    second = [(row, sample, "second") for row in (1, 2) for sample in (0, 1)]
    assert rows == [(0, 0, "first"), *second]


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
            other.publish(unit, ready.read_passed(unit))

        countdown = Countdown(step, publish)
        mine = files_of(small, ready, ReadingStorage(ready.folders.file("tmp"), countdown))
        commit_all(ready, mine, unit, [0, 3])
        commit_all(ready, mine, unit, [1, 2])
        assert mine.publish(unit, ready.read_passed(unit)).rows == ROWS
        assert not mine.damaged
        assert small.parts() == parts, f"at step {step}"
        is_over = countdown.left > 0
        forget(small)
    assert step > 15


class ReadingStorage(SteppingStorage):
    """Steps at reads too: another process may act between a listing and the opening of what it lists."""

    def list(self, folder: str) -> list[str]:
        names = super().list(folder)
        self.at_step("listed")
        return names

    def open(self, path: str) -> Any:
        self.at_step("before open")
        return super().open(path)


def test_rows_that_vanish_are_noticed(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready)
    commit_all(ready, files, unit, [0, 1])
    with pytest.raises(RuntimeError, match="1 committed rows"):
        files.publish(unit, ready.read_passed(unit))
    assert not small.output.exists()


def test_an_input_that_shrinks_during_the_run_is_noticed(small: Job) -> None:
    ready = prepared(small)
    unit = units_of(ready)[0]
    files = files_of(small, ready)
    commit_all(ready, files, unit, range(3))
    short = pa.record_batch({"id": [0], "prompt": ["prompt 0"]})
    with pytest.raises(RuntimeError, match="the input has lost rows"):
        files.publish(unit, [short])


def test_only_dead_writers_lose_their_temporary_files(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    alive = storage._create_locked(str(tmp_path / "tmp" / "alive.tmp"))
    assert in_child(lambda: storage._create_locked(str(tmp_path / "tmp" / "dead.tmp")).write(b"x") and 0) == 0
    assert storage.list(str(tmp_path / "tmp")) == ["alive.tmp", "dead.tmp"]
    assert storage.sweep() == 1
    assert storage.list(str(tmp_path / "tmp")) == ["alive.tmp"]
    alive.close()
    assert storage.sweep() == 1


def test_a_writer_that_was_swept_before_it_held_its_lock_starts_again(tmp_path: Path, monkeypatch: Any) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    import fcntl

    real, swept = fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        if not swept and operation == fcntl.LOCK_EX:
            swept.append(LocalStorage(storage.temporary_folder).sweep())
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert storage.atomic_write(str(tmp_path / "x"), b"data")
    assert (swept, (tmp_path / "x").read_bytes()) == ([1], b"data")


def test_an_exclusive_write_keeps_what_is_there(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    assert storage.atomic_write(str(tmp_path / "a" / "b"), b"one", exclusive=True)
    assert not storage.atomic_write(str(tmp_path / "a" / "b"), b"two", exclusive=True)
    assert (tmp_path / "a" / "b").read_bytes() == b"one"
    assert storage.atomic_write(str(tmp_path / "a" / "b"), b"three")
    storage.remove(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
