"""The same job with one and with two local workers, in interleaved rounds, beside the simulation of both."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .described import Fleet, Work
from .free_jobs import FreeJob, JobFailed
from .measured import measured_costs
from .simulation import simulate

COUNTS = (1, 2)
"""Numbers of workers."""
UNITS = 40

Rounds = list[dict[int, dict[str, float]]]
"""Of each round: number of workers → what the job has used."""


class Settings(NamedTuple):
    """The job.

    Args:
        tokens: of each row.
        step_ms: time of a step.
        slots: of a worker.
    """

    rows: int
    tokens: int
    step_ms: float
    slots: int = 1024

    @property
    def rows_per_unit(self) -> int:
        return max(1, self.rows // UNITS)


QUICK = Settings(400, 4, 1.0, 64)


def measure(settings: Settings, rounds: int) -> Rounds:
    """Runs the job with each number of workers in every round; their order turns round after each round.

    Raises:
        JobFailed: a job has failed, or a part is wrong.
    """
    found: Rounds = []
    for number in range(rounds):
        used = {workers: _used(settings, workers) for workers in COUNTS[:: -1 if number % 2 else 1]}
        found.append({workers: used[workers] for workers in COUNTS})
    return found


def _used(settings: Settings, workers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-scaling-") as folder:
        job = FreeJob(
            Path(folder),
            settings.rows,
            settings.tokens,
            workers,
            settings.rows_per_unit,
            settings.slots,
            settings.step_ms,
        )
        job.write()
        used = job.run()
        for wrong in job.wrong_rows():
            raise JobFailed(wrong)
        events = job.events("commit", "publish")
    millions = settings.rows * settings.tokens / 1e6
    for name in ("workers", "coordinator"):
        used[f"{name}_cpu_seconds_per_million_tokens"] = used[f"{name}_cpu_seconds"] / millions
    for name in ("commit", "publish"):
        own = [event for event in events if event["event"] == name]
        used[f"{name}_us_per_row"] = 1e6 * sum(one["seconds"] for one in own) / sum(one["rows"] for one in own)
    return used


def simulated(settings: Settings) -> dict[int, float]:
    """Returns number of workers → the tokens of a second of a worker, in a simulation without a cold start."""
    found = {}
    work = Work(settings.rows, settings.rows_per_unit, settings.tokens)
    for workers in COUNTS:
        fleet = Fleet(workers, settings.slots, settings.step_ms / 1000, cold_start=0.0)
        outcome = simulate(work, fleet, measured_costs({"request_seconds": 0.0}))
        found[workers] = outcome.tokens_per_second / workers
    return found


def lines(rounds: Rounds, simulated: Mapping[int, float]) -> list[list[str]]:
    """The lines of a table: the median of each figure for one and for two workers, and their ratio in a round."""
    made = []
    for name in rounds[0][COUNTS[0]]:
        values = {workers: [one[workers][name] for one in rounds] for workers in COUNTS}
        ratios = [two / one if one else 0.0 for one, two in zip(*values.values(), strict=True)]
        made.append([name, *(_figure(median(values[workers])) for workers in COUNTS), _spread(ratios)])
    one, two = (simulated[workers] for workers in COUNTS)
    return [*made, ["simulated tokens_per_worker_second", _figure(one), _figure(two), _ratio(two / one)]]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _spread(ratios: Sequence[float]) -> str:
    return f"{_ratio(median(ratios))} ({_ratio(min(ratios))}-{_ratio(max(ratios))})"
