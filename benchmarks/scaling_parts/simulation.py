"""A simulation of a job with many workers: events in a heap, one for each unit and not for each row.

A coordinator hands units to workers. A worker asks for the next unit when its reader has read the rows of the one
before, so that its slots stay full across the border of two units. It holds at most ceil(unpublished units ÷ workers)
units. A row takes a slot for a number of steps. A worker that fails loses its rows in flight and the rows since its
last commit. Its rows in flight are suspects: a worker without units serves them, and nothing else beside them. Units
with suspects wait until no suspects are left. The coordinator is one process: it handles one message at a time, in
order.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, NamedTuple

from .described import FREE, TAKEN_ROWS, Costs, Fleet, Outcome, Work

DAY = 86_400.0
PHASES = 8
"""The most groups of slots that become free at different times in one worker. Of more, the two that are free first are
merged: they become free at the mean of their times."""


class _Piece(NamedTuple):
    """Rows of a task that start together and end together."""

    start: float
    end: float
    rows: int


@dataclass(eq=False)
class _Task:
    """Rows of a unit that one worker serves."""

    unit: int
    rows: int
    pieces: list[_Piece] = field(default_factory=list)
    is_finished: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker. `life` counts the processes that it has had; an event of an earlier life is void.

    Args:
        free: groups of slots: when they become free, and their number. A heap.
        unstarted: rows without slots, in order.
        writer_free: when its writer has published what it has.
    """

    step_seconds: float
    dice: random.Random
    life: int = 0
    ready_at: float = 0.0
    free: list[tuple[float, int]] = field(default_factory=list)
    held: list[_Task] = field(default_factory=list)
    unstarted: deque[_Piece] = field(default_factory=deque)
    writer_free: float = 0.0


class Simulation:
    """One job. The same seed gives the same events.

    Args:
        seed: chooses the speeds of workers, the moments of failures and the lengths of rows.
    """

    def __init__(self, work: Work, fleet: Fleet, costs: Costs, seed: int = 0) -> None:
        self._work, self._fleet, self._costs = work, fleet, costs
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_events = 0
        self._now = 0.0
        self._busy_until = 0.0
        self._coordinator_seconds = 0.0
        self._queue = deque(_Task(unit, work.unit_rows(unit)) for unit in range(work.units))
        self._left = [work.unit_rows(unit) for unit in range(work.units)]
        self._unpublished = work.units
        self._waiting: dict[int, _Worker] = {}
        self._suspects: deque[list[_Task]] = deque()
        self._isolated: list[_Worker] = []
        self._blocked: list[_Task] = []
        self._published_rows = 0
        self._wasted = 0.0
        self._failures = 0
        self._workers = [self._worker(seed, number) for number in range(fleet.workers)]

    def run(self) -> Outcome:
        """Runs the job to its end."""
        work, costs = self._work, self._costs
        round_trips = work.units * costs.request_seconds / costs.requests_at_once
        self._now = round_trips * costs.survey_requests
        for worker in self._workers:
            self._start(worker)
        while self._unpublished:
            self._now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        report_seconds = work.rows * costs.report_row_seconds
        seconds = self._now + round_trips * costs.finish_requests + report_seconds
        return Outcome(
            seconds=seconds,
            rows=self._published_rows,
            tokens=float(self._published_rows * work.steps),
            wasted_tokens=self._wasted,
            failures=self._failures,
            mean_speed=mean(self._fleet.step_seconds / worker.step_seconds for worker in self._workers),
            coordinator_seconds=self._coordinator_seconds + self._status_share * seconds + report_seconds,
        )

    @property
    def _status_share(self) -> float:
        """The share of the coordinator's time for the counters that each worker sends once a second."""
        return min(0.99, self._fleet.workers * self._costs.message_seconds)

    def _worker(self, seed: int, number: int) -> _Worker:
        dice = random.Random(f"{seed}/{number}")
        sigma = self._fleet.speed_sigma
        speed = math.exp(dice.gauss(0.0, 1.0) * sigma - sigma * sigma / 2)
        return _Worker(self._fleet.step_seconds / speed, dice)

    def _at(self, time: float, act: Callable[..., None], *arguments: Any) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (time, self._num_events, act, arguments))

    def _of(self, worker: _Worker, time: float, act: Callable[..., None], *arguments: Any) -> None:
        """Plans an event of a worker, which is void if the worker has failed by then."""
        self._at(time, self._if_alive, worker, worker.life, act, arguments)

    def _if_alive(self, worker: _Worker, life: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if worker.life == life:
            act(worker, *arguments)

    def _handled(self, seconds: float) -> float:
        """Queues a message at the coordinator. Returns when it has been handled."""
        self._coordinator_seconds += seconds
        self._busy_until = max(self._now, self._busy_until) + seconds / (1 - self._status_share)
        return self._busy_until

    def _start(self, worker: _Worker) -> None:
        worker.ready_at = worker.writer_free = self._now + self._fleet.cold_start
        worker.free = [(worker.ready_at, self._fleet.slots)]
        worker.unstarted.clear()
        self._of(worker, worker.ready_at, self._ask)
        if self._fleet.failures_per_day:
            until = worker.dice.expovariate(self._fleet.failures_per_day / DAY)
            self._of(worker, worker.ready_at + until, self._fail)

    def _ask(self, worker: _Worker) -> None:
        self._of(worker, self._handled(self._costs.message_seconds), self._decide)

    def _decide(self, worker: _Worker) -> None:
        """Gives the worker suspects or a unit, or lets it wait."""
        self._waiting.pop(id(worker), None)
        is_isolated = worker in self._isolated
        if self._suspects and (is_isolated or self._can_isolate(worker)):
            if not is_isolated:
                self._isolated.append(worker)
            self._serve_alone(worker, self._suspects.popleft())
            return
        if is_isolated:
            self._isolated.remove(worker)
            self._queue.extendleft(self._blocked)
            self._blocked.clear()
            self._retry_all()
        most = -(-self._unpublished // self._fleet.workers)
        if not self._queue or len(worker.held) >= most:
            self._waiting[id(worker)] = worker
            return
        task = self._queue.popleft()
        worker.held.append(task)
        takes = self._costs.take_requests * self._costs.request_seconds
        self._of(worker, self._now + takes, self._take, task)

    def _can_isolate(self, worker: _Worker) -> bool:
        return not worker.held and len(self._isolated) < self._fleet.isolated

    def _serve_alone(self, worker: _Worker, suspects: list[_Task]) -> None:
        """Serves rows that were in flight when a worker failed, and commits them."""
        for task in suspects:
            self._serve(worker, task)
        end = max(time for time, _ in worker.free)
        worker.free = [(end, self._fleet.slots)]
        commits = len(suspects) * self._costs.request_seconds
        self._of(worker, end + commits, self._ask)

    def _take(self, worker: _Worker, task: _Task) -> None:
        worker.held.remove(task)
        self._serve(worker, task)
        self._of(worker, self._has_read(worker, task), self._ask)

    def _has_read(self, worker: _Worker, task: _Task) -> float:
        """Returns when the worker's reader has read the latest task: at most `read_ahead` rows wait for slots then."""
        unstarted = worker.unstarted
        unstarted.extend(task.pieces)
        while unstarted and unstarted[0].start <= self._now:
            unstarted.popleft()
        ahead = self._costs.read_ahead
        for piece in reversed(unstarted):
            ahead -= piece.rows
            if ahead < 0:
                return piece.start
        return self._now

    def _serve(self, worker: _Worker, task: _Task) -> None:
        """Gives each row of a task the slot that is free first."""
        worker.held.append(task)
        free, left, work = worker.free, task.rows, self._work
        while left:
            since, slots = heapq.heappop(free)
            while free and free[0][0] == since:
                slots += heapq.heappop(free)[1]
            used = min(slots, left)
            start = max(since, self._now)
            steps = float(work.steps)
            if work.spread:
                steps *= worker.dice.uniform(1 - work.spread, 1 + work.spread)
                used = min(used, -(-self._fleet.slots // PHASES))
            end = start + steps * worker.step_seconds
            task.pieces.append(_Piece(start, end, used))
            left -= used
            heapq.heappush(free, (end, used))
            if used < slots:
                heapq.heappush(free, (since, slots - used))
            if len(free) > PHASES:
                _merge_first(free)
        end = max((piece.end for piece in task.pieces), default=self._now)
        self._of(worker, end, self._finish, task)

    def _finish(self, worker: _Worker, task: _Task) -> None:
        """All rows of the task are finished. The last task of a unit publishes it."""
        costs, work = self._costs, self._work
        messages = task.rows / TAKEN_ROWS + min(task.rows, task.rows * work.steps / self._fleet.slots)
        self._handled(task.rows * costs.row_seconds + messages * costs.message_seconds)
        task.is_finished = True
        self._left[task.unit] -= task.rows
        if self._left[task.unit]:
            worker.held.remove(task)
            self._retry(worker)
            return
        seconds = self._now - min((piece.start for piece in task.pieces), default=self._now)
        requests = costs.publish_requests + costs.segment_requests * math.ceil(seconds / costs.flush_seconds)
        spent = requests * costs.request_seconds + work.unit_rows(task.unit) * costs.publish_row_seconds
        worker.writer_free = max(worker.writer_free, self._now) + spent
        self._of(worker, worker.writer_free, self._publish, task)

    def _publish(self, worker: _Worker, task: _Task) -> None:
        worker.held.remove(task)
        self._at(self._handled(self._costs.unit_seconds), self._note_published, worker, task)

    def _note_published(self, worker: _Worker, task: _Task) -> None:
        self._unpublished -= 1
        self._published_rows += self._work.unit_rows(task.unit)
        self._retry(worker)

    def _retry(self, worker: _Worker) -> None:
        if id(worker) in self._waiting:
            self._decide(worker)

    def _retry_all(self) -> None:
        for worker in list(self._waiting.values()):
            self._retry(worker)

    def _fail(self, worker: _Worker) -> None:
        """The worker's process ends, and another one starts."""
        self._failures += 1
        worker.life += 1
        self._waiting.pop(id(worker), None)
        flush = self._costs.flush_seconds
        committed_at = worker.ready_at + math.floor((self._now - worker.ready_at) / flush) * flush
        held, worker.held = worker.held, []
        suspects = [suspect for task in reversed(held) for suspect in self._give_back(worker, task, committed_at)]
        if suspects:
            self._suspects.append(suspects)
        if worker in self._isolated:
            self._isolated.remove(worker)
        self._start(worker)
        self._retry_all()

    def _give_back(self, worker: _Worker, task: _Task, committed_at: float) -> list[_Task]:
        """Queues what a failed worker has not committed of a task. Returns the rows that were in flight."""
        committed = suspects = 0
        for piece in task.pieces:
            if piece.end <= committed_at or task.is_finished:
                committed += piece.rows
            elif piece.start < self._now:
                suspects += piece.rows * (piece.end > self._now)
                self._wasted += piece.rows * (min(piece.end, self._now) - piece.start) / worker.step_seconds
        if not task.is_finished:
            self._left[task.unit] -= committed
        again = task.rows - committed - suspects
        if again or not self._left[task.unit]:
            rest = _Task(task.unit, again)
            if suspects:
                self._blocked.append(rest)
            else:
                self._queue.appendleft(rest)
        return [_Task(task.unit, suspects)] if suspects else []


def _merge_first(free: list[tuple[float, int]]) -> None:
    """Merges the groups of a heap that are free at the same time; if there are none, the two that are free first."""
    same: Counter[float] = Counter()
    for since, slots in free:
        same[since] += slots
    if len(same) < len(free):
        free[:] = sorted(same.items())
        return
    first, slots = heapq.heappop(free)
    second, others = free[0]
    heapq.heapreplace(free, ((first * slots + second * others) / (slots + others), slots + others))


def simulate(work: Work, fleet: Fleet, costs: Costs = FREE, seed: int = 0) -> Outcome:
    """Simulates a job. See `Simulation`."""
    return Simulation(work, fleet, costs, seed).run()


def base(work: Work, fleet: Fleet, costs: Costs = FREE) -> Outcome:
    """Simulates the job with one worker of speed 1 that never fails."""
    return simulate(work, replace(fleet, workers=1, speed_sigma=0.0, failures_per_day=0.0), costs)
