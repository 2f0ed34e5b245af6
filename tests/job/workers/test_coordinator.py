"""The coordinator: every unit is published once, rows that end their process are found, and no others."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.errors import CapacityError, RowError
from rwkv_batch.job.plan import Assignment, UnitPlan
from rwkv_batch.job.workers import coordinator as module
from rwkv_batch.job.workers.coordinator import Coordinator
from rwkv_batch.job.workers.messages import (
    Ask,
    BadRow,
    Begun,
    Ended,
    Failed,
    Placed,
    Published,
    Ready,
    Served,
    Taken,
)

from .simulated_workers import SimulatedWorkers


def new_coordinator(workers: Any, plan: UnitPlan) -> Coordinator:
    events: list[Any] = []
    missing = [plan.unit(index) for index in range(plan.num_units)]
    found = Coordinator(plan, missing, 0, workers, lambda name, **fields: events.append((name, fields)), 1800.0)
    found.events = events  # type: ignore[attr-defined]
    return found


@contextmanager
def silence() -> Iterator[None]:
    """Inside, no warning is logged: hundreds of processes end."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@given(
    st.integers(1, 120), st.integers(1, 40), st.integers(1, 5), st.sets(st.integers(0, 119), max_size=3), st.integers(0)
)
def test_every_unit_is_published_once_whatever_ends(
    num_rows: int, rows_per_part: int, count: int, poison: set[int], seed: int
) -> None:
    """Hypothesis chooses rows that end their process, a schedule, and processes that end for other reasons.

    Two of these cannot make a row an error: it takes one with other rows, or none, and two with the row alone.
    """
    plan = UnitPlan(num_rows, rows_per_part)
    workers = SimulatedWorkers(plan, count, seed, poison, deaths=seed % 3)
    coordinator = new_coordinator(workers, plan)
    with silence():
        coordinator.serve()
    assert dict(workers.published) == dict.fromkeys(range(plan.num_units), 1)
    assert all(len(rows) == plan.unit(index).num_rows for index, rows in workers.durable.items())
    bad = {row for row in poison if row < num_rows}
    assert workers.errors == dict.fromkeys(bad, "engine_crash"), "each row that ends its process, and no other"
    counts = coordinator.tally.counts
    assert (counts.done, counts.committed, counts.resumed) == (num_rows, num_rows, 0)
    assert not workers.running


@pytest.mark.parametrize("seed", range(5))
def test_a_row_that_ends_its_process_is_found_within_six_ends(seed: int) -> None:
    """Hundreds of rows are in flight: all of them again, then sixteenths of them, and so on."""
    plan = UnitPlan(2000, 1000)
    workers = SimulatedWorkers(plan, 1, seed, poison={777})
    new_coordinator(workers, plan).serve()
    assert workers.errors == {777: "engine_crash"}
    assert workers.ends - 1 <= 6, "one end is that of the job"


@pytest.mark.parametrize("seed", range(5))
def test_a_row_that_ends_its_process_while_it_is_read_is_found(seed: int) -> None:
    """No message says which rows a worker is reading, and rows beside them may be in flight."""
    plan = UnitPlan(60, 20)
    workers = SimulatedWorkers(plan, 1 + seed % 2, seed, unreadable={7, 30})
    with silence():
        new_coordinator(workers, plan).serve()
    assert workers.errors == {7: "engine_crash", 30: "engine_crash"}


def test_a_machine_on_which_no_row_can_be_served_ends_the_job() -> None:
    """Each row ends its process, also alone. They are not made error rows one by one, for days."""
    plan = UnitPlan(100, 50)
    workers = SimulatedWorkers(plan, 2, seed=4, poison=range(100))
    with silence(), pytest.raises(RuntimeError, match=rf"{module.MOST_CRASHES + 1} rows.*no other row.*SIGSEGV"):
        new_coordinator(workers, plan).serve()
    assert len(workers.errors) <= module.MOST_CRASHES


def test_a_lost_machine_makes_no_row_suspect() -> None:
    plan = UnitPlan(40, 10)
    workers = SimulatedWorkers(plan, 2, seed=1)
    coordinator = new_coordinator(workers, plan)
    coordinator._start(0)
    worker: Any = workers.running[0]
    for _ in range(30):
        worker.act() if not worker._in_flight else None
        coordinator._take_in()
        coordinator._hand_out()
        if coordinator._known[0].in_flight:
            break
    workers.end(worker, Ended("its machine was lost", is_machine_lost=True))
    coordinator._take_in()
    assert not coordinator._suspects
    assert len(coordinator._waiting) == plan.num_units, "its units wait for another worker at once"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_worker_holds_its_share_of_the_units(count: int) -> None:
    """Units of few rows must not all be taken by the worker that is ready first."""
    plan = UnitPlan(40, 1)
    workers = SimulatedWorkers(plan, count, seed=3)
    new_coordinator(workers, plan).serve()
    assert workers.most_units <= -(-plan.num_units // count)


def test_a_unit_that_is_published_before_it_was_said_to_begin_is_counted_once() -> None:
    """The thread that publishes a complete unit, and the one that says that it begins, are two threads."""
    workers = SilentWorkers(Placed("here", 1), Ready(), Ask(), Published(0), Begun(0, 10))
    coordinator = new_coordinator(workers, UnitPlan(10, 10))
    coordinator.serve()
    counts = coordinator.tally.counts
    assert (counts.done, counts.committed) == (10, 10)


class SilentWorkers:
    """Workers that say what a test lets them say."""

    def __init__(self, *messages: Any) -> None:
        self.count = 1
        self.events: Any = self
        self.messages = list(messages)
        self.killed: list[int] = []
        self.is_closed = False
        self.index = 0
        self.sent: list[Any] = []

    def start(self, index: int) -> Any:
        self.index = index
        return self

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block or not self.messages:
            raise queue.Empty
        return self, self.messages.pop(0)

    def send(self, message: Any) -> None:
        self.sent.append(message)
        self.messages.append(Ended("exit code 0"))

    def kill(self) -> None:
        self.killed.append(self.index)
        self.messages.append(Ended("signal 9 (SIGKILL)"))

    def close(self) -> None:
        self.is_closed = True


def test_an_error_that_is_the_jobs_ends_it_at_once() -> None:
    workers = SilentWorkers(Placed("here", 1), Failed(CapacityError("too small")))
    with pytest.raises(CapacityError, match="too small"):
        new_coordinator(workers, UnitPlan(10, 10)).serve()
    assert workers.is_closed


@pytest.mark.parametrize(("messages", "ends"), [([], module.LOADING_ENDS), ([Ready()], module.MOST_ENDS)])
def test_processes_that_end_one_after_another_end_the_job(messages: list[Any], ends: int) -> None:
    workers = SilentWorkers(*messages, *[Ended("signal 11 (SIGSEGV)")] * 20)
    with pytest.raises(RuntimeError, match=rf"{ends + 1} workers ended one after another.*SIGSEGV"):
        new_coordinator(workers, UnitPlan(10, 10)).serve()
    assert workers.is_closed


class EndsAtCommits(SilentWorkers):
    """A worker that finishes rows, and ends whenever it should commit them."""

    def start(self, index: int) -> Any:
        self.messages += [Placed("here", 1), Ready(), Ask()]
        return super().start(index)

    def send(self, message: Any) -> None:
        self.sent.append(message)
        if isinstance(message, Assignment):
            rows = sorted(message.rows or message.unit.rows)
            self.messages += [Begun(message.unit.index, 0), Taken(rows), Served(rows, 0, 0)]
        self.messages.append(Ended("signal 9 (SIGKILL)"))


def test_a_unit_whose_rows_are_never_committed_ends_the_job() -> None:
    """Rows are finished between the ends, so the count of ends without such rows stays low."""
    workers = EndsAtCommits()
    with silence(), pytest.raises(RuntimeError, match=rf"^{module.MOST_UNIT_ENDS + 1} workers of unit 0 .*SIGKILL"):
        new_coordinator(workers, UnitPlan(10, 10)).serve()
    assert workers.is_closed


def test_a_bad_row_ends_a_job_that_stops_at_one() -> None:
    row = BadRow(3, RowError("null_prompt", "the prompt is null"))
    workers = SilentWorkers(Ready(), row)
    coordinator = new_coordinator(workers, UnitPlan(10, 10))
    coordinator.serve()
    assert coordinator.bad_row is row
    assert [type(message).__name__ for message in workers.sent] == ["Stop"]


def test_a_worker_that_makes_no_step_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's. A worker that loads, or that has nothing to do, may be silent for longer."""
    plan = UnitPlan(10, 10)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    workers = SilentWorkers()
    coordinator = new_coordinator(workers, plan)
    coordinator._timeout = 60.0
    coordinator._start(0)
    known = coordinator._known[0]
    known.is_placed = True
    for now[0], is_ready, units, expected in (
        (599.0, False, {}, []),
        (601.0, False, {}, [0]),
        (601.0, True, {}, [0]),
        (661.0, True, {0: plan.unit(0)}, [0, 0]),
    ):
        known.is_ready, known.units, known.hangs = is_ready, units, ""
        coordinator._replace_hanging()
        assert workers.killed == expected
        if is_ready:
            known.seen_at = 600.0
