"""A job of a suite: where its rows go, how it goes on, and its metrics. The engine is a fake."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from job import fake_llm
from job.conftest import fake_engine as fake_engine

from rwkv_batch.suite.job_task import UnfinishedJob, run_job_task
from rwkv_batch.suite.load import load_suite
from rwkv_batch.suite.models import Checkpoint
from rwkv_batch.suite.tasks import JobTask
from suite.suites import GRADE, write_suite

CHECKPOINT = Checkpoint("rwkv-2", "/models/rwkv-2.pth", "a" * 64, None)


def job(folder: Path, **settings: Any) -> JobTask:
    entry = {"name": "sums", "job": "sums.yaml", "grade": GRADE, "set": settings}
    (task,) = load_suite(write_suite(folder, tasks=[entry])).tasks
    assert isinstance(task, JobTask)
    return task


def test_a_job_runs_once_for_each_checkpoint(tmp_path: Path) -> None:
    task, folder = job(tmp_path, **{"sampling.n": 2}), str(tmp_path / "out")
    done = run_job_task(CHECKPOINT, task, folder)
    assert done.settings["rows"] == 3
    assert Path(done.settings["output"]).parent == tmp_path / "out" / "jobs" / "rwkv-2"
    record = json.loads(Path(f"{done.settings['output']}.rwkv_batch/job.json").read_text())
    assert record["settings"]["sampling.n"] == 2
    of_model = hashlib.sha256(b"/models/rwkv-2.pth None").hexdigest()  # as the fake engine computes it
    assert record["settings"]["model.fingerprint"] == of_model
    assert done.metrics[0].name == "avg@2"
    assert done.samples is not None
    assert done.samples.ids == ["0", "1", "2"]
    assert fake_llm.LLM.loaded == 1
    assert run_job_task(CHECKPOINT, task, folder).metrics == done.metrics
    assert fake_llm.LLM.loaded == 1
    other = Checkpoint("rwkv-3", "/models/rwkv-3.pth", "b" * 64, None)
    assert run_job_task(other, task, folder).settings["output"] != done.settings["output"]
    assert fake_llm.LLM.loaded == 2


def test_a_job_that_ends_at_an_error_has_no_metrics(tmp_path: Path) -> None:
    task = job(tmp_path, **{"run.on_row_error": "stop", "input.max_prompt_tokens": 1})
    with pytest.raises(UnfinishedJob, match=r"stopped at row 0.*prompt_too_long"):
        run_job_task(CHECKPOINT, task, str(tmp_path / "out"))
    task = job(tmp_path, **{"input.max_prompt_tokens": 1})
    assert run_job_task(CHECKPOINT, task, str(tmp_path / "out")).settings["error_rows"] == 3
