"""Counters of workers, against sums by hand, over the life of a process and of the one that takes its place."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from rwkv_batch.engine.stats import EngineStats
from rwkv_batch.job.plan import UnitPlan
from rwkv_batch.job.workers import tally as module
from rwkv_batch.job.workers.messages import Begun, Committed, Served, Status
from rwkv_batch.job.workers.tally import Tally, WorkerTally


def described(worker: WorkerTally) -> dict[str, Any]:
    return {**asdict(worker.status()), "phases": worker.phases()}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def stats(steps: int, tokens: int, share: float = 0.5, **more: float) -> EngineStats:
    found = EngineStats(8, 64, running=4, completion_tokens=tokens, model_seconds=float(steps))
    for _ in range(steps):
        found.occupancy.add(share)
    found.steps = steps
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_each_worker_has_its_own_rows_tokens_slots_and_waiting(clock: Clock) -> None:
    tally = Tally(finished=0)
    for index in (0, 1):
        assert tally.hear(index, Status(None))
        clock.now += 5
        tally.start(index)
    clock.now += 10
    assert tally.hear(0, Status(stats(4, 40, input_seconds=1.5), disk_seconds=0.25))
    assert tally.hear(1, Status(stats(2, 10, share=1.0), disk_seconds=2.0))
    assert not tally.hear(1, Status(stats(2, 10, share=1.0), disk_seconds=3.0)), "no step since the last time"
    tally.begin(Begun(0, 0))
    tally.serve(0, 3)
    tally.add(0, Served([0, 1, 2], errors=1, scored_tokens=7))
    tally.commit(0, Committed(0, 2))
    first, second = (described(worker) for _, worker in tally.workers())
    assert (first["seconds"], second["seconds"]) == (15.0, 10.0)
    assert (first["rows_done"], first["rows_committed"], first["errors"], first["scored_tokens"]) == (3, 2, 1, 7)
    assert (first["completion_tokens"], second["completion_tokens"]) == (40, 10)
    assert (first["occupancy"], second["occupancy"]) == (0.5, 1.0)
    assert (first["phases"]["input"], first["phases"]["write"], second["phases"]["write"]) == (1.5, 0.25, 3.0)
    assert tally.counts.wait_seconds == 3.25
    together = tally.stats()
    assert (together.completion_tokens, together.max_batch_size, together.max_batch_tokens) == (50, 16, 64)


def test_a_process_goes_on_with_the_counters_of_the_one_before_it(clock: Clock) -> None:
    tally = Tally(finished=0)
    tally.start(0)
    clock.now += 10
    tally.hear(0, Status(stats(4, 40), disk_seconds=1.0))
    tally.end(0)
    (worker,) = (described(worker) for _, worker in tally.workers())
    assert (worker["slots"], worker["slots_in_use"], worker["seconds"]) == (0, 0, 10.0)
    clock.now += 100  # another process loads the model
    tally.hear(0, Status(None))
    tally.start(0)
    clock.now += 2
    tally.hear(0, Status(stats(1, 5, share=1.0), disk_seconds=0.5))
    (worker,) = (described(worker) for _, worker in tally.workers())
    assert (worker["slots"], worker["completion_tokens"], worker["steps"], worker["seconds"]) == (8, 45, 5, 12.0)
    assert worker["occupancy"] == pytest.approx((4 * 0.5 + 1) / 5)
    assert worker["phases"]["write"] == 1.5 and worker["phases"]["model"] == 5.0


def test_rows_that_are_lost_count_again_for_their_worker_and_once_for_the_job(clock: Clock) -> None:
    tally, plan = Tally(finished=0), UnitPlan(10, 10)
    tally.hear(0, Status(stats(1, 1)))
    tally.begin(Begun(0, 0))
    for _ in range(2):
        tally.serve(0, 10)
        tally.add(0, Served([*range(10)], errors=0, scored_tokens=0))
        if not tally.counts.committed:
            tally.lose(0)
            assert tally.counts.done == 0
            tally.commit(0, Committed(0, 1))
    tally.publish(plan.unit(0))
    assert (tally.counts.done, tally.counts.committed) == (10, 10)
    ((_, worker),) = tally.workers()
    assert described(worker)["rows_done"] == 20
