"""A job of a suite, run with one checkpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import RwkvBatchError
from ..job.execute import run_job
from .grade import grade
from .messages import Done
from .score_results import score_results
from .tasks import JobTask

if TYPE_CHECKING:
    from .models import Checkpoint


class UnfinishedJob(RwkvBatchError):
    """A job has ended before all of its rows were served."""


def run_job_task(checkpoint: Checkpoint, task: JobTask, folder: str) -> Done:
    """Runs a job, or what is left of it, and makes metrics of its rows.

    Args:
        folder: of all results.

    Raises:
        RwkvBatchError, OSError, Stopped: as `run_job` does; or a row has ended the job.
    """
    output = os.path.join(folder, "jobs", checkpoint.id, task.folder_name(checkpoint.sha256))
    of_checkpoint = {
        "model.path": checkpoint.path,
        "model.sha256": None,
        "output.path": output,
        "run.state_dir": None,
    }
    outcome = run_job(task.job, {**task.overrides, **of_checkpoint})
    if not outcome.is_complete:
        raise UnfinishedJob(f"the job has not served all rows: it stopped at {outcome.stopped_at or 'an unknown row'}")
    metrics, samples = score_results(output) if task.grade is None else grade(output, task.grade)
    return Done(metrics, samples, 0.0, {"output": output, "rows": outcome.rows, "error_rows": outcome.errors})
