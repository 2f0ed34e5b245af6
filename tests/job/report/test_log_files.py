"""The files of an event log, with files of a few hundred bytes: every reader finds every event once, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from job.conftest import Job
from rwkv_batch.job.output.storage import Appender, LocalStorage
from rwkv_batch.job.report import log_files
from rwkv_batch.job.report.events import EventLog, read_events
from rwkv_batch.job.report.follow import LogFollower
from rwkv_batch.job.report.log_files import LogFiles, log_names, with_sums
from rwkv_batch.job.report.status import JobWatch


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "FILE_BYTES", 600)


def open_log(folder: Path, run: str = "a", shard: str = "0/1", name: str = "log.jsonl") -> EventLog:
    return EventLog(LocalStorage(str(folder / "tmp")), str(folder / name), shard=shard, run=run)


def events_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_events(LocalStorage(str(folder / "tmp")), str(folder)))


def test_the_files_of_a_log_are_read_in_order() -> None:
    names = ["log.jsonl", "log.000010.jsonl", "log-1-of-2.jsonl", "log.000002.jsonl", "log-1-of-2.000001.jsonl"]
    assert log_names([*names, "job.json", "tmp"]) == [
        "log.jsonl",
        "log.000002.jsonl",
        "log.000010.jsonl",
        "log-1-of-2.jsonl",
        "log-1-of-2.000001.jsonl",
    ]
    objects = ["log.18f0a.000001.jsonl", "log.18f0a.000000.jsonl", "log.17fff.000000.jsonl"]
    assert log_names(objects) == sorted(objects)


def test_a_long_log_has_many_files_and_every_event_once(tmp_path: Path) -> None:
    """Two runs one after the other, and another shard at the same time."""
    other = open_log(tmp_path, "b", "1/2", "log-1-of-2.jsonl")
    for run in ("a", "c"):
        log = open_log(tmp_path, run)
        for number in range(20):
            log("publish", number=number)
            other("publish", number=number)
    files = sorted(tmp_path.glob("log*"))
    assert len(files) > 12 and all(100 < path.stat().st_size <= 600 for path in files)
    found = events_of(tmp_path)
    numbers = {run: [event["number"] for event in found if event["run"] == run] for run in "abc"}
    assert numbers == {"a": [*range(20)], "b": [*range(20)] * 2, "c": [*range(20)]}
    times = [event["time"] for event in found if event["run"] in "ac"]
    assert times == sorted(times)


def test_a_line_that_is_larger_than_a_file_is_written(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for text in ("x" * 2000, "y", "z" * 2000):
        log("failure", message=text)
    assert [len(event["message"]) for event in events_of(tmp_path)] == [2000, 1, 2000]
    assert len(list(tmp_path.glob("log*"))) == 3


def test_a_line_that_was_cut_off_spoils_no_other_one(tmp_path: Path) -> None:
    """As a process leaves it that is killed while it writes."""
    open_log(tmp_path)("start")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": 5, "ru')
    open_log(tmp_path, "b")("start")
    assert [event["run"] for event in events_of(tmp_path)] == ["a", "b"]


class Killed(BaseException):
    """The process ends here."""


class Fatal(LocalStorage):
    """A disk at whose n-th operation the process is killed, before it or after it.

    Attributes:
        lines: that were appended.
    """

    def __init__(self, folder: str, last: int, *, is_after: bool) -> None:
        super().__init__(folder)
        self.lines: list[str] = []
        self._left, self._is_after = last, is_after

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._left -= 1
        if self._left == 0 and not self._is_after:
            raise Killed
        try:
            yield
        finally:
            if self._left == 0:
                raise Killed

    def list(self, folder: str) -> list[str]:
        with self._counted():
            return super().list(folder)

    def open(self, path: str) -> BinaryIO:
        with self._counted():
            return super().open(path)

    def atomic_write(self, path: str, data: Any, *, exclusive: bool = False) -> bool:
        with self._counted():
            return super().atomic_write(path, data, exclusive=exclusive)

    def remove(self, path: str) -> None:
        with self._counted():
            super().remove(path)

    def appender(self, path: str) -> Appender:
        append = super().appender(path)

        def counted(line: str, *, is_urgent: bool) -> None:
            with self._counted():
                append(line, is_urgent=is_urgent)
                self.lines.append(line)

        return counted


@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_at_any_moment_loses_no_event_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_after: bool
) -> None:
    """Runs follow each other, each killed one operation later. The disk knows which lines it was given."""
    monkeypatch.setattr(log_files, "WHOLE_FILES", 2)
    written: list[dict[str, Any]] = []
    for last in range(1, 40):
        storage = Fatal(str(tmp_path / "tmp"), last, is_after=is_after)
        log = EventLog(storage, str(tmp_path / "log.jsonl"), shard="0/1", run=f"run-{last}")
        with pytest.raises(Killed):
            for number in range(100):
                log("commit" if number % 3 else "publish", rows=number, seconds=0.5)
        written += map(json.loads, storage.lines)
    found = events_of(tmp_path)
    assert publications(found) == publications(written)
    assert committed(found) == committed(written) and len(committed(found)) > 20
    assert any("commits" in event for event in found), "old commits were added up"


def publications(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["run"], event["rows"]) for event in events if event["event"] == "publish"]


def committed(events: list[dict[str, Any]]) -> Counter[str]:
    """Run → rows that it has committed."""
    found: Counter[str] = Counter()
    for event in events:
        found[event["run"]] += event["rows"] if event["event"] == "commit" else 0
    return +found


def test_old_files_keep_sums_of_commits_and_the_oldest_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "WHOLE_FILES", 2)
    monkeypatch.setattr(log_files, "MOST_FILES", 5)
    log = open_log(tmp_path)
    log("start", config={})
    for number in range(60):
        log("commit", worker=number % 2, unit=0, rows=number, seconds=1.0)
    names = log_names(path.name for path in tmp_path.glob("log*"))
    assert len(names) == 5 and "log.jsonl" not in names
    for name in names[:3]:
        events = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [event["worker"] for event in events] == [0, 1] or [event["worker"] for event in events] == [1, 0]
        assert all(event["commits"] == event["seconds"] for event in events)
    rows = [event["rows"] for event in events_of(tmp_path)]
    assert rows[-1] == 59 and sum(rows) in {sum(range(first, 60)) for first in range(10, 59)}


def test_sums_of_commits() -> None:
    """Of each run and worker; other lines, and damaged ones, stay as they are."""
    commit = {"time": 1, "run": "a", "shard": "0/1", "event": "commit", "unit": 0, "rows": 3, "seconds": 0.5}
    lines = [
        {**commit, "event": "start"},
        commit,
        {**commit, "time": 2, "rows": 4},
        {**commit, "time": 3, "worker": 1, "rows": 7},
        {**commit, "event": "progress"},
        {**commit, "time": 4, "rows": 5, "commits": 2},
        {**commit, "rows": "many"},
    ]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines) + b'{"event": "commit", "ru\n'
    found = with_sums(data)
    assert with_sums(found) == found
    *whole, damaged = found.splitlines()
    assert damaged == b'{"event": "commit", "ru'
    assert [json.loads(line) for line in whole] == [
        lines[0],
        lines[3],
        lines[4],
        {**commit, "time": 4, "rows": 12, "seconds": 1.5, "commits": 4},
        lines[6],
    ]


def test_a_follower_reads_on_when_a_file_is_full_and_when_an_old_one_is_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each event it knows the same events as a follower that begins anew."""
    monkeypatch.setattr(log_files, "WHOLE_FILES", 2)
    storage = LocalStorage(str(tmp_path / "tmp"))
    follower = LogFollower(storage, str(tmp_path))
    log = open_log(tmp_path)
    for number in range(40):
        log("commit" if number % 4 else "publish", part="a", errors=0, unit=0, rows=number, seconds=0.0)
        names = storage.list(str(tmp_path))
        assert follower.runs(names) == LogFollower(storage, str(tmp_path)).runs(names)
    (events,) = follower.runs(names).values()
    assert sum(event["rows"] for event in events) == sum(range(40))
    assert [event["rows"] for event in events if event["event"] == "publish"] == [*range(0, 40, 4)]


def test_a_log_that_cannot_be_reduced_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "WHOLE_FILES", 1)

    def fail(self: LocalStorage, path: str, data: Any, **_: Any) -> bool:
        raise OSError(28, "no space")

    monkeypatch.setattr(LocalStorage, "atomic_write", fail)
    log = open_log(tmp_path)
    for number in range(40):
        log("commit", unit=0, rows=number, seconds=0.0)
    assert [event["rows"] for event in events_of(tmp_path)] == [*range(40)]


def test_two_processes_that_write_the_same_log_keep_all_lines(tmp_path: Path) -> None:
    """As when one that was suspended wakes up."""
    logs = [open_log(tmp_path, run) for run in "ab"]
    for number in range(30):
        logs[number % 2]("publish", number=number)
    found = events_of(tmp_path)
    assert sorted(event["number"] for event in found) == [*range(30)]
    for run in "ab":
        numbers = [event["number"] for event in found if event["run"] == run]
        assert numbers == sorted(numbers)


def test_a_job_with_many_log_files_has_one_report_and_one_status(job: Job) -> None:
    """Two shards, one of them in two runs: all readers find both."""
    assert job.run("--shard", "0/2") == 0
    assert job.run("--shard", "1/2") == 0
    assert job.run("--shard", "1/2") == 0
    assert len(list(job.state.glob("log-1-of-2.*.jsonl"))) > 3
    report = json.loads((job.state / "report.json").read_bytes())
    assert [(run["shard"], run["outcome"]) for run in report["runs"]] == [
        ("0/2", "finished"),
        ("1/2", "finished"),
        ("1/2", "finished"),
    ]
    assert all("config" in run and "machine" in run for run in report["runs"])
    assert sum(run["rows"] for run in report["runs"]) == 30
    found = JobWatch(str(job.output)).look()
    assert (found["state"], found["runs"]) == ("finished", 3)


def test_lines_go_to_the_newest_file_there_is(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("x\n")
    (tmp_path / "log.000007.jsonl").write_text("x\n")
    LogFiles(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "log.jsonl")).append("y\n", is_urgent=True)
    assert (tmp_path / "log.000007.jsonl").read_text() == "x\ny\n"
