"""Processes of the GPU benchmark: a point that hangs or kills its process costs no other point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.stand_in import StandIn

from benchmarks.gpu_parts import processes
from benchmarks.gpu_parts.part_run import END_SECONDS, GO_ON_SECONDS, run_part, seconds_for_points, stop
from benchmarks.gpu_parts.plan import PARTS, PLANS, Stage
from benchmarks.gpu_parts.processes import ATTEMPTS, PartRun, Worker, run_stage
from benchmarks.gpu_parts.record import DONE, FAILED, RUNNING, UNFINISHED, Record, merge, note_end, read
from benchmarks.gpu_parts.task import Task

ROOT = Path(__file__).parents[2]

PART = "correctness"
HOUR = 3600.0


def work() -> None:
    """Runs the process of a part. The name of a point says what the point does."""
    task = Task.from_json(sys.argv[1])
    record = Record(
        task.path,
        {"commit": task.commit},
        task.end - time.monotonic(),
        read(task.path),
        print,
        task.share,
        task.is_dry,
        task.goes_on,
    )
    record.write(UNFINISHED, RUNNING)
    signal.signal(signal.SIGTERM, stop)

    def point(name: str) -> dict:
        if name.startswith("hang"):
            child = subprocess.Popen(["sleep", "3600"])
            Path(task.out, "child").write_text(f"{child.pid}\n")
            child.wait()
        if name.startswith("die"):
            os._exit(3)
        if name.startswith("raise"):
            raise ValueError(name)
        return {"pid": os.getpid()}

    def run(context: SimpleNamespace) -> list[str]:
        for name in task.models:
            record.measure(name, partial(point, name))
        return [f"table of {len(record.points)}"]

    part: Any = SimpleNamespace(run=run, record=record)
    sys.modules[f"benchmarks.gpu_parts.{PART}"] = part
    record.write(*run_part(PART, part, task.end))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(processes, "monotonic", clock)
    return clock


@pytest.fixture(autouse=True)
def own_processes(monkeypatch):
    def start(task: Task) -> subprocess.Popen:
        code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        code += "from benchmarks.test_gpu_processes import work; work()"
        return subprocess.Popen([sys.executable, "-c", code, task.to_json()], start_new_session=True)

    monkeypatch.setattr(processes, "start", start)


def task(folder: Path, *points: str) -> Task:
    return Task(part=PART, out=str(folder), commit="abc", models=points, end=time.monotonic() + HOUR)


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.02)


def current(task: Task) -> str:
    found = read(task.path)
    return found["current"] if found else ""


def child(folder: Path) -> int:
    """Returns the process that the point "hang" has started."""
    path = folder / "child"
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "\nState:\tZ" not in status.read_text()
    except OSError:
        return False


def test_a_point_that_hangs_is_ended_with_its_children_and_the_others_are_measured(tmp_path, clock):
    own = task(tmp_path, "before", "hang", "after")
    worker = Worker(own, print)
    started = child(tmp_path)
    assert not worker.poll()
    clock.now += PARTS[PART].point_seconds - 1
    assert not worker.poll()
    assert is_alive(started)
    clock.now += 1
    wait_for(worker.poll)  # another process has gone on
    assert not is_alive(started)
    found = read(own.path)
    assert found["status"] == DONE
    assert found["points"].keys() == {"before", "after"}
    assert found["failed"] == {"hang": f"stopped after {PARTS[PART].point_seconds:.0f} s"}


def test_each_point_has_its_own_time(tmp_path, clock):
    own = task(tmp_path, "first", "hang")
    worker = Worker(own, print)
    clock.now += PARTS[PART].point_seconds - 1  # before anything was seen of the process
    wait_for(lambda: current(own) == "hang")
    assert not worker.poll()
    clock.now += 2
    for _ in range(10):
        assert not worker.poll()
        time.sleep(0.05)
    assert read(own.path)["why"] == RUNNING
    worker.terminate()
    worker.stop(0.0)


def test_points_that_end_their_process_are_noted_until_there_were_enough(tmp_path):
    own = task(tmp_path, *(f"die {i}" for i in range(ATTEMPTS)), "after")
    wait_for(Worker(own, print).poll)
    found = read(own.path)
    assert (found["status"], found["why"]) == (FAILED, "its process ended with 3")
    assert found["failed"].keys() == {f"die {i}" for i in range(ATTEMPTS)}
    own = task(tmp_path / "other", "die", "after")
    wait_for(Worker(own, print).poll)
    found = read(own.path)
    assert found["status"] == DONE
    assert (found["points"].keys(), found["failed"].keys()) == ({"after"}, {"die"})


def test_a_point_that_is_cut_off_by_the_parts_end_is_no_failure(tmp_path, clock):
    own = task(tmp_path, "before", "hang", "after")
    worker = Worker(own, print)
    wait_for(lambda: current(own) == "hang")
    assert not worker.poll()
    clock.now += HOUR + 1
    wait_for(worker.poll)
    found = read(own.path)
    assert found["status"] == UNFINISHED
    assert (found["points"].keys(), found["failed"]) == ({"before"}, {})
    assert found["left_out"] == ["after", "hang"]
    # The process itself does not know that the clock of this test says that the time is over.
    assert found["table"] == ["table of 1", "no time was left; 2 points were not reached"]


def test_a_process_whose_time_is_over_says_what_was_not_reached(tmp_path):
    own = task(tmp_path, "before", "hang", "after")
    worker = Worker(replace(own, end=time.monotonic() + HOUR), print)
    wait_for(lambda: current(own) == "hang")
    os.kill(worker._process.pid, signal.SIGTERM)
    worker._process.wait()
    assert read(own.path)["why"] == RUNNING  # its time is not over, so the parent process says why it was ended
    worker.terminate()
    worker.stop(0.0)
    assert read(own.path)["why"] == "the command was stopped"


def test_the_last_points_leave_time_for_the_table(tmp_path):
    own = replace(task(tmp_path), end=100.0)
    assert seconds_for_points(own, 90.0) == 10 - END_SECONDS
    assert seconds_for_points(replace(own, goes_on=True), 90.0) == 10 - GO_ON_SECONDS


class Interrupted(StandIn):
    """A part of three points, and its context. SIGTERM arrives in the second point."""

    def __init__(self, folder: Path) -> None:
        self.record = Record(folder / "part.json", {"card": "a card"}, HOUR, None, print)

    def run(self, context: Interrupted) -> list[str]:
        self.record.measure("before", lambda: {"value": 1})
        self.record.measure("interrupted", lambda: os.kill(os.getpid(), signal.SIGTERM))
        self.record.measure("after", lambda: {"value": 2})
        return [*self.record.points]


@pytest.mark.parametrize("is_late", [True, False])
def test_the_table_is_made_although_the_time_is_over(tmp_path, monkeypatch, is_late):
    own, before = Interrupted(tmp_path), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, f"benchmarks.gpu_parts.{PART}", own)
    try:
        signal.signal(signal.SIGTERM, stop)
        status, why, table = run_part(PART, own, time.monotonic() + (-1 if is_late else HOUR))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (status, table) == (UNFINISHED, ["before"])
    assert own.record.left_out == ["interrupted", "after"]
    assert why == ("no time was left; 2 points were not reached: interrupted, after" if is_late else RUNNING)


def test_shares_measure_every_point_once_and_their_results_are_put_together(tmp_path):
    names = (*(f"point {i}" for i in range(7)), "raise", "die")
    own = task(tmp_path, *names)
    wait_for(PartRun(own, 3, print).poll)
    found = read(own.path)
    assert found["status"] == DONE
    assert found["points"].keys() == {f"point {i}" for i in range(7)}
    assert found["failed"] == {"raise": "ValueError: raise", "die": "its process ended with 3"}
    assert len({point["pid"] for point in found["points"].values()}) == 3


def test_a_share_that_dies_before_it_writes_does_not_hide_the_others(tmp_path):
    share, whole = tmp_path / "share.json", tmp_path / "whole.json"
    note_end(tmp_path / "dead.json", "its process ended with -9", is_late=False)
    Record(share, {"card": "a card"}, HOUR, None, print).measure("point", lambda: {"value": 1})
    merge(whole, [tmp_path / "dead.json", share])
    assert read(whole)["about"] == {"card": "a card"}
    assert read(whole)["points"].keys() == {"point"}


def test_points_of_shares_that_were_stopped_are_kept_for_the_same_commit_alone(tmp_path):
    about = {"card": "a card", "rwkv_batch": "abc"}
    left = replace(task(tmp_path), share=(1, 4))  # by a command with other shares than the next one
    Record(left.path, about, HOUR, None, print).measure("by a share", lambda: {"value": 1})
    Record(task(tmp_path).path, about | {"rwkv_batch": "def"}, HOUR, None, print).measure("old", lambda: {"value": 1})
    run = PartRun(task(tmp_path, "new"), 2, print)
    assert read(task(tmp_path).path)["points"].keys() == {"by a share"}
    wait_for(run.poll)
    assert not list(tmp_path.glob("shares/*.json"))


def test_a_process_that_fails_to_compile_beforehand_is_named(tmp_path):
    said = []
    own = replace(task(tmp_path, "die"), is_dry=True, share=(0, 1))
    wait_for(Worker(own, said.append).poll)
    assert said == [f"{own.log}: its process ended with 3"]
    assert not own.path.exists()


def test_meanwhile_something_else_is_done(tmp_path):
    seen = []
    own = task(tmp_path, "point")
    run_stage(Stage((PART,), HOUR), [own], 1, print, lambda: seen.append(own.path.exists()))
    assert seen


def test_a_stage_that_is_interrupted_leaves_no_process(tmp_path, monkeypatch):
    def interrupt(seconds: float) -> None:
        child(tmp_path)
        raise KeyboardInterrupt

    own = task(tmp_path, "hang")
    monkeypatch.setattr(processes, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage((PART,), HOUR), [own], 1, print)
    wait_for(lambda: not is_alive(child(tmp_path)))


def test_plans_fit_their_limits():
    limits = {"first": 270, "second": 360}
    for name, stages in PLANS.items():
        # What is left is for the start of Python, processes that do not end at once, and the copying of results.
        assert sum(stage.seconds for stage in stages) <= limits[name] - 45
        assert stages[0].parts == ("smoke",)
        assert all(part in PARTS for stage in stages for part in stage.parts)
