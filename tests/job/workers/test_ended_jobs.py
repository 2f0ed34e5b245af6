"""A job with workers that another process takes over: the workers are told to commit, and the job ends."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from rwkv_batch import Stopped
from rwkv_batch.job.plan import UnitPlan
from rwkv_batch.job.stopping import StopSignals
from rwkv_batch.job.workers.coordinator import Coordinator
from rwkv_batch.job.workers.interface import Events
from rwkv_batch.job.workers.messages import Ask, Ended, Left, Placed, Ready, Stop


class OneWorker:
    """A worker that asks for a unit, and finishes none. It ends when it is told to stop."""

    def __init__(self, stop: StopSignals) -> None:
        self.index, self.count = 0, 1
        self.events: Events = queue.SimpleQueue()
        self.heard: list[Any] = []
        self._stop = stop

    def start(self, index: int) -> OneWorker:
        for message in (Placed("here", 1), Ready(), Ask()):
            self.events.put((self, message))
        return self

    def send(self, message: Any) -> None:
        self.heard.append(message)
        if isinstance(message, Stop):
            self.events.put((self, Left()))
            self.events.put((self, Ended("code 0")))
        else:
            self._stop.request("process 7 on there serves the whole job")

    def kill(self) -> None: ...

    def close(self) -> None:
        self.heard.append("closed")


def test_a_request_to_end_reaches_the_workers() -> None:
    stop, plan = StopSignals(), UnitPlan(4, 2)
    workers = OneWorker(stop)
    units = [plan.unit(index) for index in range(2)]
    coordinator = Coordinator(plan, units, 0, workers, lambda *_, **__: None, 1800, stop.check)
    with pytest.raises(Stopped, match="process 7 on there serves the whole job"):
        coordinator.serve()
    assert isinstance(workers.heard[-2], Stop) and workers.heard[-1] == "closed"
