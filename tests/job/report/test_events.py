"""The event log: its times go on evenly, and whatever its lines hold, the report can be made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from job.conftest import Job
from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.report import events
from rwkv_batch.job.report.events import EventLog, read_events
from rwkv_batch.job.report.history import Run, serving_seconds, timeline, utilisation


class Clock:
    """The system's clock, which is set back by a day after its first reading, and one that only goes on."""

    def __init__(self) -> None:
        self.readings = iter([1_000_000.0, *(913_600.0 + i for i in range(99))])
        self.seconds = iter(range(100, 200))

    def time(self) -> float:
        return next(self.readings)

    def monotonic(self) -> float:
        return next(self.seconds)


def test_times_go_on_where_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "time", Clock())
    with EventLog(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "log.jsonl"), shard="0/1") as log:
        for _ in range(3):
            log("progress")
    times = [event["time"] for event in read_events(LocalStorage(str(tmp_path)), str(tmp_path))]
    assert times == [1_000_001.0, 1_000_002.0, 1_000_003.0]


def sample(time: float, seconds: float, steps: int, slots: int) -> dict[str, Any]:
    counts = {"prompt_tokens": 0, "completion_tokens": 10 * steps, "slots_in_use": slots, "slots": 4}
    facts = {"time": time, "run": "a", "shard": "0/1", "event": "progress"}
    return {**facts, "seconds": seconds, "steps": steps, "occupancy": slots / 4, **counts}


def test_a_log_with_times_that_go_back_is_read_in_its_order() -> None:
    """As versions wrote it that took each time from the system's clock."""
    (run,) = Run.all_of([sample(1000.0, 0.0, 0, 0), sample(-85_390.0, 10.0, 50, 2), sample(-85_380.0, 20.0, 100, 4)])
    assert utilisation([run])["slots"] == 1.0
    assert serving_seconds([run]) == 20.0
    shown = timeline([run.samples])
    assert (shown["seconds"][-1], max(shown["completion_tokens"])) == (19.5, 50.0)


@pytest.mark.parametrize(
    "line", [b"{}", b"[1]", b'{"time": 1, "event": "start"}', b"\xff", b"[" * 100_000, b'"\\ud800"']
)
def test_damaged_lines_are_left_out_of_the_report(small: Job, line: bytes) -> None:
    assert small.run() == 0
    log = small.state / "log.jsonl"
    log.write_bytes(line + b"\n" + log.read_bytes())
    assert small.run() == 0
    assert len(json.loads((small.state / "report.json").read_bytes())["runs"]) == 2


def test_a_message_without_an_encoding_is_logged(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="bad"),
        EventLog(LocalStorage(str(tmp_path / "tmp")), str(tmp_path / "log.jsonl"), shard="0/1"),
    ):
        raise ValueError("bad \ud800")
    (event,) = read_events(LocalStorage(str(tmp_path)), str(tmp_path))
    assert event["message"] == "bad \ud800"


def test_the_share_of_recorded_steps_is_reported_where_steps_are_recorded() -> None:
    (run,) = Run.all_of([sample(0.0, 0.0, 0, 0), sample(10.0, 10.0, 50, 4) | {"recorded_steps": 40}])
    assert utilisation([run])["recorded"] == 0.8
    (run,) = Run.all_of([sample(0.0, 0.0, 0, 0), sample(10.0, 10.0, 50, 4)])
    assert "recorded" not in utilisation([run])
