"""A long job with two local workers: its memory, a kill in the middle, and every row of its parts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from .free_jobs import FreeJob, kill, watch

LOOK_SECONDS = 1.0
WARM_LOOKS = 0.25
"""The share of the looks at a process at its beginning that do not count: it is loading, and filling its slots."""
QUARTERS = 4


class Settings(NamedTuple):
    """The job.

    Args:
        tokens: of each row.
        units: of the job.
        slots: of a worker.
        step_ms: time of a step.
    """

    rows: int
    tokens: int
    workers: int = 2
    units: int = 50
    slots: int = 1024
    step_ms: float = 0.0


QUICK = Settings(200, 4, 1, 8, 8, 20.0)


def run(settings: Settings) -> dict[str, Any]:
    """Runs a job, kills it when half of its parts are there, starts it again, and compares all rows.

    Returns:
        What was measured. `memory`: of each process of each run, the means of the quarters of its time in MiB.
        `wrong`: what differs in the parts, up to ten texts.
    """
    rows, tokens, workers, units, slots, step_ms = settings
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-long-") as folder:
        job = FreeJob(Path(folder), rows, tokens, workers, -(-rows // units), slots, step_ms, flush_seconds=5.0)
        job.write()
        process = job.start()
        first = watch(job, process, LOOK_SECONDS, until=lambda: _num_parts(job) * 2 >= units)
        kill(process)
        before = _num_parts(job)
        start = time.time()
        process = job.start()
        second = watch(job, process, LOOK_SECONDS)
        job.end(process)
        seconds = time.time() - start
        used = job.used()
        again = [event["time"] - start for event in job.events("commit") if event["time"] >= start]
        runs = job.events("start")
        wrong = [text for text, _ in zip(job.wrong_rows(), range(10), strict=False)]
    return {
        "rows": rows,
        "tokens of a row": tokens,
        "parts at the kill": f"{before} of {units}",
        "runs": len(runs),
        "seconds of the second run": round(seconds, 1),
        "seconds from its start to its first commit": round(min(again), 1) if again else None,
        "seconds of its coordinator's processor, while it serves": round(used["coordinator_cpu_seconds"], 2),
        "the same, in all": round(used["coordinator_cpu_seconds_in_all"], 2),
        "seconds of its workers' processors": round(used["workers_cpu_seconds"], 1),
        "wrong": wrong,
        "memory": {name: quarters(held) for name, held in _looks(first, second)},
    }


def _looks(*runs: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[tuple[str, list[float]]]:
    """Yields the name of each process of each run, and its memory at each look."""
    for number, run in enumerate(runs, 1):
        for name, looks in run.items():
            yield f"run {number}, {name}", [held for _, held in looks]


def quarters(held: Sequence[float]) -> list[float]:
    """Returns the mean memory in MiB of a process in each quarter of its samples, without those of its start."""
    warm = list(held[int(len(held) * WARM_LOOKS) :])
    size = max(1, len(warm) // QUARTERS)
    parts = [warm[index * size : (index + 1) * size] for index in range(QUARTERS)]
    return [round(mean(part), 1) for part in parts if part]


def _num_parts(job: FreeJob) -> int:
    return sum(1 for _ in job.parts_folder.glob("*.parquet"))
