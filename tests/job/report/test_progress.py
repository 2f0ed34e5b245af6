"""What a run shows while it goes on, and metrics.prom."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from job import fake_llm
from rwkv_batch.job.output.writer import Counts
from rwkv_batch.job.report import display, progress
from rwkv_batch.job.report.display import ProgressKind
from rwkv_batch.job.report.progress import Progress
from rwkv_batch.job.report.run_status import RunStatus, read_prometheus

from ..conftest import Job


@pytest.fixture
def mixed(job: Job) -> Job:
    """28 good rows of two samples, two bad ones."""
    prompts: list[str | None] = [f"secret {i}" for i in range(30)]
    prompts[3] = prompts[21] = None
    return job.input(prompt=prompts).set(sampling__n=2)


def test_metrics(mixed: Job) -> None:
    """As a Prometheus reader takes them: each value after its type and its help, counters named _total."""
    mixed.set(output__path=str(mixed.folder / 'a "quoted" name'))
    assert mixed.run() == 3
    lines = (mixed.state / "metrics.prom").read_text().splitlines()
    kinds = {name: kind for mark, word, name, kind in (line.split(" ", 3) for line in lines) if word == "TYPE"}
    assert {name for name, kind in kinds.items() if kind == "counter"} == {n for n in kinds if n.endswith("_total")}
    assert [line.split(" ")[:2] for line in lines[::3]] == [["#", "HELP"]] * len(kinds)
    labels = '{job="a \\"quoted\\" name",shard="0/1"}'
    values = {name.removesuffix(labels): float(value) for name, value in (x.rsplit(" ", 1) for x in lines[2::3])}
    assert values.keys() == kinds.keys()
    prompts = sum(row["prompt_tokens"] or 0 for row in mixed.rows()[::2])
    assert (values["rwkv_batch_rows"], values["rwkv_batch_rows_done"], values["rwkv_batch_errors_total"]) == (30, 30, 2)
    tokens = sum(row["completion_tokens"] or 0 for row in mixed.rows())
    assert values["rwkv_batch_completion_tokens_total"] == tokens and prompts
    text = "\n".join(lines)
    assert sorted(read_prometheus(text).values()) == sorted(values.values())
    assert read_prometheus(text[:-20]) == read_prometheus("") == {}


def test_a_line_says_everything() -> None:
    before = RunStatus(seconds=70, prompt_tokens=1000, completion_tokens=500)
    now = RunStatus(
        seconds=100,
        rows_total=5000,
        rows_resumed=1000,
        rows_done=2000,
        rows_committed=1900,
        errors=7,
        slots_in_use=318,
        slots=320,
        prompt_tokens=301_000,
        completion_tokens=90_500,
        seconds_left=299.3,
    )
    assert progress.describe(now, before) == (
        "errors 7 | slots 318/320 | prompt 10,000 tok/s | completion 3,000 tok/s | eta 5 min | committed 1,900"
    )
    assert "eta measuring" in progress.describe(RunStatus(), RunStatus())


def test_a_line_of_a_score_job_has_scored_tokens() -> None:
    before, now = (
        RunStatus(seconds=70, scored_tokens=100),
        RunStatus(seconds=100, prompt_tokens=60, scored_tokens=30100),
    )
    line = progress.describe(now, before, "score")
    assert "| prompt 2 tok/s | scored 1,000 tok/s |" in line and "completion" not in line


class Clock:
    """Stands in for the module `time` and for the event that ends the watching: to wait takes no time.

    Args:
        ends_at: the second at which the watching ends.
        at_tick: called at each wait with the time it brings.
    """

    def __init__(self, ends_at: float, at_tick: Callable[[float], object] = lambda now: None) -> None:
        self.now, self._ends_at, self._at_tick = 0.0, ends_at, at_tick

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def strftime(self, _: str) -> str:
        return f"{self.now:.0f} s"

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self._at_tick(self.now)
        return self.now >= self._ends_at

    def set(self) -> None:
        pass


TIMEOUT = 1800.0


def watch(
    monkeypatch: pytest.MonkeyPatch, counts: Counts, clock: Clock, kind: ProgressKind = "auto"
) -> list[tuple[str, Any]]:
    """Watch a job of 40 rows until the clock says that it has ended. Returns the events."""
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(display, "time", clock)
    events: list[tuple[str, Any]] = []
    log = lambda event, **fields: events.append((event, fields))  # noqa: E731
    watching = Progress(40, counts, fake_llm.Stats, log, lambda values: None, timeout=TIMEOUT, kind=kind)
    watching._ending = clock  # type: ignore[assignment]
    with watching:
        pass
    return events


def test_lines_come_at_their_interval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every 30 s, and one at the end."""
    events = watch(monkeypatch, Counts(done=10), Clock(ends_at=100))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" rows")[0] for line in lines] == ["30 s", "60 s", "90 s", "100 s"]
    assert all("rows 10/40 (25.0%) | errors 0 | slots 0/8" in line for line in lines)
    assert len(events) > 10


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bar = r"25%.*10/40.*slots 0/8"
    watch(monkeypatch, Counts(done=10), Clock(ends_at=1), "bar")
    assert re.search(bar, capsys.readouterr().err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watch(monkeypatch, Counts(done=10), Clock(ends_at=1))
    assert re.search(bar, capsys.readouterr().err)
    watch(monkeypatch, Counts(done=10), Clock(ends_at=1), "lines")
    assert not re.search(bar, found := capsys.readouterr().err) and "rows 10/40 (25.0%)" in found


def test_progress_as_json_is_an_object_each_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch(monkeypatch, Counts(done=10), Clock(ends_at=5), "json")
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["time"] for one in found] == [1, 2, 3, 4, 5]
    assert found[0] == {**asdict(RunStatus()), **found[0]}
    assert {(one["rows_done"], one["rows_total"]) for one in found} == {(10, 40)}
    watch(monkeypatch, Counts(done=10), Clock(ends_at=5), "none")
    assert capsys.readouterr().err == ""


def test_steps_that_were_not_recorded_are_in_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = fake_llm.Stats(unrecorded_steps=Counter({"asks for much": 3}))
    monkeypatch.setattr(fake_llm, "Stats", lambda: stats)
    events = watch(monkeypatch, Counts(), Clock(ends_at=2))
    found = [fields["unrecorded"] for event, fields in events if event == "progress"]
    assert len(found) >= 3 and all(one == {"asks for much": 3} for one in found)


def test_an_engine_that_hangs_ends_the_process(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    events = watch(monkeypatch, Counts(), Clock(ends_at=TIMEOUT + 2))
    assert codes == [1]
    assert ("failure", "Stall") in [(event, fields.get("type")) for event, fields in events]
    assert "made no step for 1801 s" in caplog.text


def test_an_engine_at_work_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that commits rows, though rarely, is not stalled."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    counts = Counts()

    def commit(now: float) -> None:
        counts.committed = int(now // (TIMEOUT - 10))

    watch(monkeypatch, counts, Clock(4 * TIMEOUT, commit))
    assert counts.committed == 4
    assert not codes
