"""Runs, workers and marks, from the events of a log."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_batch.job.report.history import (
    Run,
    ServingClock,
    marks,
    serving_seconds,
    sources,
    timeline,
    unrecorded_steps,
    utilisation,
)
from rwkv_batch.job.report.phases import tracks


def event(name: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"time": time, "run": "a", "shard": "0/1", "event": name, **fields}


def progress(time: float, seconds: float, slots: int = 8, **fields: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": 0, "completion_tokens": int(10 * seconds), "slots_in_use": slots, "slots": slots}
    rows = {"rows_done": int(seconds), "rows_resumed": 0, "steps": int(seconds), "occupancy": 1.0}
    return event("progress", time, seconds=seconds, **counts, **rows, **fields)


def test_workers_add_up_to_their_run() -> None:
    """Events of a worker name it. Its failure is not the run's, which goes on with the others."""
    events = [event("start", 90.0, config={"task": "generate"})]
    for worker in (0, 1):
        events += [event("model", 95.0, worker=worker, model={"device": f"cuda:{worker}"})]
        events += [progress(100.0 + at, at, worker=worker, phases={"model": at}) for at in (0.0, 5.0, 10.0)]
    events += [event("commit", 105.0, worker=1, seconds=2.0), event("failure", 110.0, worker=1, type="T", message="m")]
    (run,) = Run.all_of([*events, event("end", 111.0)])
    found = run.describe()
    assert (found["outcome"], found["rows"], found["completion_tokens"]) == ("finished", 20, 200)
    assert [worker["model"]["device"] for worker in found["workers"].values()] == ["cuda:0", "cuda:1"]
    assert found["workers"][1]["outcome"] == "T: m"
    assert serving_seconds([run]) == 10.0
    assert max(timeline([one.samples for one in sources([run])])["completion_tokens"]) == pytest.approx(20.0)
    serving, writing = tracks([run])
    assert serving["phases"] == {"model": 20.0, "other": 0.0}
    assert writing["phases"] == {"commit": 2.0, "idle": 18.0}


def test_progress_of_the_run_itself_counts_and_not_that_of_its_workers_again() -> None:
    (run,) = Run.all_of([progress(0.0, 0.0), progress(10.0, 10.0), progress(10.0, 10.0, worker=0)])
    assert run.describe()["rows"] == 10
    assert utilisation([run])["slots"] == 1.0


def test_pauses_are_cut_and_marked() -> None:
    first = [progress(100.0, 0.0), progress(110.0, 10.0)]
    second = [
        {**one, "run": "b"}
        for one in (progress(5110.0, 0.0), progress(5120.0, 10.0, slots=4), progress(5130.0, 20.0, slots=4))
    ]
    runs = Run.all_of([*first, *second])
    resumed, halved = marks(runs)
    assert (resumed["kind"], resumed["seconds"], resumed["pause_seconds"]) == ("resumed", 10.0, 5000.0)
    assert (halved["kind"], halved["seconds"], halved["slots_before"], halved["slots_after"]) == ("halved", 20.0, 8, 4)
    shown = timeline([run.samples for run in runs])
    assert shown["seconds"][-1] < 30 and shown["completion_tokens"] == pytest.approx([10.0] * 30)


def test_shards_at_the_same_time_are_no_resumes() -> None:
    shards = [{**one, "run": name} for name in "bc" for one in (progress(100.0, 0.0), progress(110.0, 10.0))]
    assert marks(Run.all_of(shards)) == []


def test_the_clock_stands_still_while_no_run_serves() -> None:
    clock = ServingClock([(0.0, 10.0), (5.0, 20.0), (100.0, 110.0)])
    assert clock.total == 30.0
    assert [clock.at(time) for time in (0.0, 20.0, 60.0, 100.0, 105.0)] == [0.0, 20.0, 20.0, 20.0, 25.0]


def test_a_log_of_an_earlier_version_has_no_phases() -> None:
    assert tracks(Run.all_of([progress(0.0, 0.0), progress(10.0, 10.0)])) == []


def test_workers_without_progress_have_what_they_committed_and_the_time_since_their_model_was_there() -> None:
    """As a coordinator writes it: the progress is that of all workers together."""
    events = [progress(100.0, 0.0), event("worker", 101.0, worker=0, state="placed", host="h", pid=1)]
    events += [
        event("model", 104.0, worker=0, model={"device": "cpu"}),
        event("worker", 104.0, worker=0, state="ready"),
    ]
    events += [event("commit", 108.0, worker=0, unit=0, rows=7, seconds=0.5)]
    events += [event("worker", 109.0, worker=0, state="left", how="exit code 0")]
    (run,) = Run.all_of([*events, progress(110.0, 10.0, phases={"model": 4.0})])
    found = run.describe()["workers"][0]
    assert (found["rows"], found["serving_seconds"], found["outcome"]) == (7, 5.0, "finished")
    assert found["machine"] == {"host": "h"}
    serving, writing = tracks([run])
    assert (serving["phases"], serving["seconds"]) == ({"model": 4.0, "other": 1.0}, 5.0)
    assert writing["phases"] == {"commit": 0.5, "idle": 4.5}


def test_slots_in_use_are_those_of_the_steps_between_two_events() -> None:
    """A sequence of a few steps begins and ends between two events: none runs at the events themselves."""
    samples = [progress(100.0 + at, at) for at in (0.0, 5.0, 10.0)]
    for sample, (steps, occupancy) in zip(samples, [(0, 0.0), (10, 0.5), (40, 0.8)], strict=True):
        sample |= {"steps": steps, "occupancy": occupancy, "slots_in_use": 0}
    shown = timeline([samples])["slots_in_use"]
    assert shown[0] == pytest.approx(0.5 * 8) and shown[-1] == pytest.approx((40 * 0.8 - 10 * 0.5) / 30 * 8, abs=1e-3)
    for sample in samples:
        del sample["occupancy"]
    assert not any(timeline([samples])["slots_in_use"]), "an earlier version has not counted them"


def test_steps_that_were_not_recorded_add_up() -> None:
    last = [
        progress(110.0, 10.0, unrecorded={"b": 1, "a": 5}),
        {**progress(110.0, 10.0, unrecorded={"b": 9}), "run": "z"},
    ]
    runs = Run.all_of([progress(100.0, 0.0, unrecorded={}), *last])
    assert [*unrecorded_steps(runs).items()] == [("b", 10), ("a", 5)]
    assert unrecorded_steps(Run.all_of([progress(0.0, 0.0)])) == {}


def test_a_run_with_workers_serves_from_when_the_first_model_is_there() -> None:
    """Its progress begins when the processes start."""
    events = [progress(100.0 + at, at, slots=0 if at < 50 else 8) for at in (0.0, 25.0, 49.0, 55.0, 100.0)]
    events.append(event("model", 150.0, worker=0, model={}))
    (run,) = Run.all_of(sorted(events, key=lambda one: one["time"]))
    assert run.serving_interval == (150.0, 200.0) and run.describe()["serving_seconds"] == 50.0
    assert [sample["seconds"] for sample in run.served] == [49.0, 55.0, 100.0]
    (alone,) = Run.all_of([one for one in events if one["event"] == "progress"])
    assert alone.serving_interval == (100.0, 200.0) and len(alone.served) == 5


def test_each_worker_has_its_phases_and_its_slots() -> None:
    events = [progress(100.0, 0.0), event("model", 100.0, worker=0, model={})]
    for worker, waited in ((0, 1.0), (1, 4.0)):
        more: dict[str, Any] = {"worker": worker, "phases": {"input": waited, "model": 2.0}}
        events += [{**progress(100.0 + at, at, **more), "event": "worker_progress"} for at in (0.0, 8.0)]
    run = Run.all_of([*events, progress(110.0, 10.0, phases={"input": 5.0, "model": 4.0})])[0].describe()
    assert [worker["phases"]["input"] for worker in run["workers"].values()] == [1.0, 4.0]
    assert [worker["utilisation"]["slots"] for worker in run["workers"].values()] == [1.0, 1.0]
    assert (run["phases"], run["rows"]) == ({"input": 5.0, "model": 4.0}, 10)
    (serving,) = tracks(Run.all_of([*events, progress(110.0, 10.0, phases={"input": 5.0, "model": 4.0})]))
    assert (serving["seconds"], serving["phases"]["other"]) == (16.0, 7.0)


def test_no_more_slots_are_in_use_than_there_are_where_slots_appear_between_two_events() -> None:
    """As of a run that starts before its workers have loaded the model."""
    events = [progress(100.0, 0.0, slots=0), progress(110.0, 10.0, slots=32), progress(120.0, 20.0, slots=32)]
    found = timeline([events])
    assert max(found["slots_in_use"]) == 32.0
    assert all(used <= slots for used, slots in zip(found["slots_in_use"], found["slots"], strict=True))
