"""What a coordinator spends: processor time for each row, each message and each unit, and for the report."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.plan import UnitPlan
from rwkv_batch.job.report.events import EventLog
from rwkv_batch.job.report.tally import Tally
from rwkv_batch.job.workers import local
from rwkv_batch.job.workers.coordinator import Coordinator
from rwkv_batch.job.workers.messages import Start

from . import talking_worker
from .described import TAKEN_ROWS

WORKERS = 2
TIMEOUT = 600.0


class Talk(NamedTuple):
    """What workers say.

    Args:
        rows: of the job.
        rows_per_unit: of each unit.
        served_rows: rows of a message that says which rows are finished.
    """

    rows: int
    rows_per_unit: int
    served_rows: int

    @property
    def units(self) -> int:
        return -(-self.rows // self.rows_per_unit)

    @property
    def messages(self) -> int:
        """The messages that say which rows were read, and which are finished."""
        each = -(-self.rows_per_unit // TAKEN_ROWS) + -(-self.rows_per_unit // self.served_rows)
        return self.units * each


def talks(rows: int) -> list[Talk]:
    """Three kinds of jobs: few long messages, many short ones, many units. Rows: 1,000 or more."""
    return [Talk(rows, rows // 5, 1024), Talk(rows, rows // 5, 4), Talk(rows, 50, 50)]


def measure(rows: int, rounds: int) -> dict[str, float]:
    """Returns the processor seconds of a coordinator for each row that is taken and finished, for each message about
    rows, and for each unit: the least squares of interleaved rounds."""
    found = [(talk, cpu_seconds(talk)) for _ in range(rounds) for talk in talks(rows)]
    counts = np.array([[talk.rows, talk.messages, talk.units] for talk, _ in found], float)
    scale = counts.max(axis=0)
    seconds = np.linalg.lstsq(counts / scale, np.array([cpu for _, cpu in found]), rcond=None)[0] / scale
    return dict(zip(("row_seconds", "message_seconds", "unit_seconds"), map(float, seconds), strict=True))


def report_row_seconds(rows: int, rounds: int) -> float:
    """Returns the processor seconds of a report for each row of a part: the median of some rounds."""
    results = {
        "sample_index": pa.array([0] * rows, pa.int32()),
        "completion": ["text"] * rows,
        "finish_reason": ["length"] * rows,
        "prompt_tokens": pa.array(range(rows), pa.int32()),
        "completion_tokens": pa.array(range(rows), pa.int32()),
        "status": ["ok"] * rows,
        "error_code": pa.nulls(rows, pa.string()),
    }
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "part.parquet"))
        pq.write_table(pa.table(results), path, compression="zstd")
        for _ in range(rounds):
            tally = Tally("generate", samples=10)
            before = time.process_time()
            tally.add_part(tally.read_part(LocalStorage(folder), path, {}), 0)
            spent.append(time.process_time() - before)
    if tally.lengths["completion_tokens"].count != rows:
        raise RuntimeError(f"the report has counted {tally.lengths['completion_tokens'].count} rows, expected {rows}")
    return median(spent) / rows


def cpu_seconds(talk: Talk) -> float:
    """Returns the processor seconds of a coordinator, of all threads of this process, while it hears a job."""
    plan = UnitPlan(talk.rows, talk.rows_per_unit)
    job: Any = talk.served_rows
    nothing: Any = None
    starts = [Start(index, job, nothing, {}, None, WORKERS, None) for index in range(WORKERS)]
    with tempfile.TemporaryDirectory() as folder, patch.object(local, "PROGRAM", talking_worker.__name__):
        log = EventLog(LocalStorage(str(Path(folder, "tmp"))), str(Path(folder, "log.jsonl")))
        units = [plan.unit(index) for index in range(plan.num_units)]
        coordinator = Coordinator(plan, units, 0, local.LocalWorkers(starts), log, TIMEOUT)
        before = time.process_time()
        coordinator.serve()
        spent = time.process_time() - before
    if coordinator.tally.counts.done != talk.rows:
        raise RuntimeError(f"the coordinator has counted {coordinator.tally.counts.done} rows, expected {talk.rows}")
    return spent
