"""Workers without processes: a random schedule of what workers may do, for tests of the coordinator."""

from __future__ import annotations

import queue
import random
from collections import Counter, deque
from collections.abc import Collection
from typing import Any

from rwkv_batch.job.plan import Assignment, UnitPlan
from rwkv_batch.job.workers.messages import (
    Ask,
    Begun,
    Close,
    Committed,
    Done,
    Ended,
    Left,
    Message,
    Placed,
    Published,
    Ready,
    Served,
    Stop,
    Taken,
)

BATCH = 5
"""Rows that a worker reads together."""


class SimulatedWorkers:
    """The backend. Each time the coordinator waits, one worker does something.

    Args:
        poison: rows that end the process that serves them.
        unreadable: rows that end the process that reads them.
        deaths: how many processes end for other reasons, every second one with its machine.

    Attributes:
        durable: unit → rows that are committed.
        errors: rows that have become error rows.
        published: how often each unit was published.
        ends: how many processes have ended.
        most_units: the most units that one worker was serving.
    """

    def __init__(
        self,
        plan: UnitPlan,
        count: int,
        seed: int,
        poison: Collection[int] = (),
        deaths: int = 0,
        unreadable: Collection[int] = (),
    ) -> None:
        self.events: Any = self
        self.count = count
        self.plan = plan
        self.poison = set(poison)
        self.unreadable = set(unreadable)
        self.durable: dict[int, set[int]] = {index: set() for index in range(plan.num_units)}
        self.errors: dict[int, str] = {}
        self.published: Counter[int] = Counter()
        self.ends = 0
        self.most_units = 0
        self.running: list[SimulatedWorker] = []
        self.random = random.Random(seed)
        self._deaths = deaths
        self._messages: deque[tuple[Any, Message]] = deque()

    def start(self, index: int) -> SimulatedWorker:
        worker = SimulatedWorker(self, index)
        self.running.append(worker)
        return worker

    def close(self) -> None:
        self.running.clear()

    def put(self, worker: SimulatedWorker, message: Message) -> None:
        self._messages.append((worker, message))

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[Any, Message]:
        for _ in range(1000 if block else 1):
            if self._messages:
                return self._messages.popleft()
            if block:
                self._advance()
        raise queue.Empty

    def end(self, worker: SimulatedWorker, ended: Ended) -> None:
        self.running.remove(worker)
        self.ends += 1
        self.put(worker, ended)

    def _advance(self) -> None:
        worker = self.random.choice(self.running)
        if self._deaths and self.random.random() < 0.02:
            self._deaths -= 1
            self.end(worker, Ended("a test", is_machine_lost=bool(self._deaths % 2)))
        else:
            worker.act()


class SimulatedWorker:
    def __init__(self, workers: SimulatedWorkers, index: int) -> None:
        self.index = index
        self._workers = workers
        self._inbox: deque[Any] = deque()
        self._is_ready = False
        self._unread: list[int] = []
        self._unit = -1
        self._in_flight: dict[int, Assignment] = {}
        self._finished: set[int] = set()
        self._open: dict[int, Assignment] = {}
        self._left: dict[int, set[int]] = {}
        self._done: deque[int] = deque()

    def send(self, message: Any) -> None:
        self._inbox.append(message)

    def kill(self) -> None:
        self._workers.end(self, Ended("killed"))

    def act(self) -> None:
        """Does one of the things that a worker may do next."""
        if not self._is_ready:
            self._is_ready = True
            for message in (Placed("here", 1), Ready(), Ask()):
                self._say(message)
            return
        actions = [self._read] * bool(self._unread) + [self._serve] * bool(self._in_flight)
        actions += [self._commit] * bool(self._finished) + [self._say_done] * bool(self._done)
        if self._inbox and not self._unread:
            actions.append(self._take)
        if actions:
            self._workers.random.choice(actions)()

    def _say(self, message: Message) -> None:
        self._workers.put(self, message)

    def _take(self) -> None:
        message = self._inbox.popleft()
        if isinstance(message, Close | Stop):
            self._commit()
            self._say(Left())
            self._workers.end(self, Ended("exit code 0"))
            return
        unit = message.unit.index
        self._unit = unit
        committed = self._workers.durable[unit]
        self._unread = message.missing(committed)
        self._open[unit] = message
        self._left[unit] = set(self._unread)
        self._workers.most_units = max(self._workers.most_units, len(self._left))
        self._say(Begun(unit, len(committed)))
        if not self._unread:
            self._complete(unit)
            self._say(Ask())

    def _read(self) -> None:
        rows, self._unread = self._unread[:BATCH], self._unread[BATCH:]
        if self._open[self._unit].error is None and not self._workers.unreadable.isdisjoint(rows):
            self._workers.end(self, Ended("signal 11 (SIGSEGV)"))
            return
        self._in_flight |= dict.fromkeys(rows, self._open[self._unit])
        self._say(Taken(rows))
        if not self._unread:
            self._say(Ask())

    def _serve(self) -> None:
        row = self._workers.random.choice(list(self._in_flight))
        assignment = self._in_flight.pop(row)
        if assignment.error is not None:
            self._workers.errors[row] = assignment.error.code
        elif row in self._workers.poison:
            self._workers.end(self, Ended("signal 11 (SIGSEGV)"))
            return
        self._finished.add(row)
        self._say(Served([row], int(assignment.error is not None), 0))
        unit = assignment.unit.index
        self._left[unit].discard(row)
        if not self._left[unit] and not (self._unread and self._unit == unit):
            self._commit()
            self._complete(unit)

    def _commit(self) -> None:
        for row in self._finished:
            unit = row // self._workers.plan.rows_per_part
            self._workers.durable[unit].add(row)
            self._say(Committed(unit, 1))
        self._finished.clear()

    def _complete(self, unit: int) -> None:
        if self._open[unit].rows is not None:
            self._done.append(unit)
        if len(self._workers.durable[unit]) == self._workers.plan.unit(unit).num_rows:
            self._workers.published[unit] += 1
            self._say(Published(unit))
        del self._left[unit], self._open[unit]

    def _say_done(self) -> None:
        self._say(Done(self._done.popleft()))
