"""When the counters of a worker are written into the log."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_batch.engine.stats import EngineStats
from rwkv_batch.job.report.history import Run, marks
from rwkv_batch.job.workers import worker_log as module
from rwkv_batch.job.workers.messages import Status
from rwkv_batch.job.workers.tally import Tally
from rwkv_batch.job.workers.worker_log import WorkerLog


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_events_come_at_their_period_and_when_slots_change(clock: Clock) -> None:
    tally, found = Tally(0), []
    log = WorkerLog(tally, lambda event, **fields: found.append((clock.now, event, fields)))
    tally.hear(3, Status(None))
    log.tick()
    assert not found, "no model is loaded"
    slots = {1: 8, 20: 8, 21: 4, 22: 4}
    for second in range(1, 31):
        clock.now = float(second)
        tally.hear(3, Status(EngineStats(slots.get(second, 8 if second < 21 else 4), 64)))
        log.tick()
    assert [(at, fields["slots"]) for at, _, fields in found] == [(1, 8), (15, 8), (21, 4), (30, 4)]
    assert {(event, fields["worker"]) for _, event, fields in found} == {("worker_progress", 3)}
    clock.now = 31.0
    log.end()
    assert found[-1][0] == 31.0


def test_a_long_job_has_few_events(clock: Clock) -> None:
    tally, found = Tally(0), []
    log = WorkerLog(tally, lambda event, **fields: found.append(clock.now))
    tally.hear(0, Status(EngineStats(8, 64)))
    for second in range(86_400):
        clock.now = float(second)
        log.tick()
    assert 150 < len(found) < 250


def test_an_end_of_a_worker_is_no_loss_of_slots_and_a_halving_is(clock: Clock) -> None:
    """What the report makes of the events: those of the run itself have the slots of all workers."""
    tally, found = Tally(0), []

    def write(event: str, **fields: Any) -> None:
        found.append({"time": 50 + clock.now, "run": "a", "shard": "0/1", "event": event, **fields})

    log = WorkerLog(tally, write)
    for second, slots in enumerate([[8, 8], [8, None], [8, 8], [8, 4], [8, 4]]):
        clock.now = float(second)
        for index, number in enumerate(slots):
            if number is None:
                tally.end(index)
            else:
                tally.hear(index, Status(EngineStats(number, 64)))
        log.tick()
        both = tally.stats().max_batch_size
        write("progress", seconds=clock.now, slots=both, slots_in_use=both, steps=second, occupancy=1.0)
    (mark,) = marks(Run.all_of(found))
    assert (mark["kind"], mark["slots_before"], mark["slots_after"]) == ("halved", 8, 4)
