"""The jobs and the fleets of the simulation's table, and its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .described import TAKEN_ROWS, Costs, Fleet, Outcome, Work, efficiency
from .simulation import base, simulate

WORKERS = (1, 4, 16, 64, 256, 1000)
UNITS_PER_WORKER = 16
"""Units of each worker, where a user sets output.rows_per_part for the number of workers."""


class Disturbance(NamedTuple):
    """How workers differ from one that is steady: see `Fleet`."""

    speed_sigma: float
    failures_per_day: float

    def __str__(self) -> str:
        speeds = f"speeds ±{self.speed_sigma:.0%}" if self.speed_sigma else "equal speeds"
        failures = f"{self.failures_per_day:g} failures a day" if self.failures_per_day else "no failures"
        return f"{speeds}, {failures}"


DISTURBANCES = (
    Disturbance(0.0, 0.0),
    Disturbance(0.1, 1.0),
    Disturbance(0.3, 1.0),
    Disturbance(0.1, 10.0),
    Disturbance(0.3, 10.0),
)


def rows_for(rows: int, workers: int) -> int:
    """Returns the rows of a part with which each worker has UNITS_PER_WORKER units."""
    return max(1, -(-rows // (workers * UNITS_PER_WORKER)))


class Variant(NamedTuple):
    """A line of the table.

    Args:
        plan: "auto", or UNITS_PER_WORKER units for each worker.
        store: where the parts are.
    """

    plan: str
    store: str
    disturbance: Disturbance

    def __str__(self) -> str:
        return f"{self.plan}, {self.store}, {self.disturbance}"


AUTO, FOR_WORKERS = "auto", f"{UNITS_PER_WORKER} a worker"
DISK, STORE, SERIAL_STORE = "disk", "store", "store, one at a time"
STEADY = DISTURBANCES[1]
VARIANTS = (
    *(Variant(plan, DISK, disturbance) for plan in (AUTO, FOR_WORKERS) for disturbance in DISTURBANCES),
    *(Variant(plan, store, STEADY) for store in (STORE, SERIAL_STORE) for plan in (AUTO, FOR_WORKERS)),
)
SHOWN = (
    *(Variant(plan, DISK, disturbance) for plan in (AUTO, FOR_WORKERS) for disturbance in DISTURBANCES[1::3]),
    *(Variant(AUTO, store, STEADY) for store in (STORE, SERIAL_STORE)),
)
"""The lines of the chart."""


class Point(NamedTuple):
    """A simulated job. Its efficiency is against one worker with the units of `auto`, on a disk."""

    variant: Variant
    workers: int
    units: int
    efficiency: float
    outcome: Outcome

    @property
    def wasted(self) -> float:
        """Tokens that failures have lost ÷ tokens of the job."""
        return self.outcome.wasted_tokens / self.outcome.tokens

    def figures(self) -> dict[str, Any]:
        """The point for a result file."""
        return {
            "variant": str(self.variant),
            "workers": self.workers,
            "units": self.units,
            "seconds": round(self.outcome.seconds, 1),
            "efficiency": round(self.efficiency, 4),
            "wasted": round(self.wasted, 6),
            "failures": self.outcome.failures,
            "coordinator_share": round(self.outcome.coordinator_share, 4),
        }


def points(work: Work, fleet: Fleet, costs: Costs, seed: int, counts: Sequence[int] = WORKERS) -> Iterator[Point]:
    """Simulates a job with each variant and each number of workers.

    Args:
        work: its `rows_per_unit` are those of the plan "auto".
        fleet: everything but the number of workers, and how they differ.
        costs: of a job in a store.
    """
    stores = {
        DISK: replace(costs, request_seconds=0.0),
        STORE: costs,
        SERIAL_STORE: replace(costs, requests_at_once=1.0),
    }
    one = base(work, fleet, stores[DISK])
    for variant in VARIANTS:
        for workers in counts:
            rows_per_unit = work.rows_per_unit
            if variant.plan == FOR_WORKERS:
                rows_per_unit = min(rows_per_unit, rows_for(work.rows, workers))
            planned = replace(work, rows_per_unit=rows_per_unit)
            disturbed = replace(fleet, workers=workers, **variant.disturbance._asdict())
            outcome = simulate(planned, disturbed, stores[variant.store], seed)
            yield Point(variant, workers, planned.units, efficiency(outcome, workers, one), outcome)


def saturation(fleet: Fleet, costs: Costs, tokens: Sequence[int] = (16, 64, 256, 1024)) -> dict[int, int]:
    """Returns tokens of a row → the number of workers whose messages take all of the coordinator's time.

    A worker of speed 1 with full slots ends slots ÷ (tokens × step_seconds) rows a second. It sends a message for each
    step in which a row ends, or for each row where there are fewer, one for each TAKEN_ROWS rows that it takes, and its
    counters once a second. Units are left out.
    """
    found = {}
    for count in tokens:
        rows = fleet.slots / (count * fleet.step_seconds)
        messages = 1 + rows / TAKEN_ROWS + min(rows, 1 / fleet.step_seconds)
        found[count] = int(1 / (rows * costs.row_seconds + messages * costs.message_seconds))
    return found
