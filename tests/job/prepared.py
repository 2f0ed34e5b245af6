"""Helpers for tests of the commit protocol: prepared jobs, their files and units, and rows committed as a run would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

from job import fake_llm
from rwkv_batch.job.load import load_job
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.output.results import Results
from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.plan import Unit
from rwkv_batch.job.prepare import Prepared, prepare
from rwkv_batch.rows import GenerateRow
from rwkv_batch.text.detokenizer import Detokenizer

from .conftest import Job

ROWS = 4
"""Rows of the job `small`."""


def forget(job: Job) -> None:
    shutil.rmtree(job.output, ignore_errors=True)
    shutil.rmtree(job.state, ignore_errors=True)


def prepared(job: Job) -> Prepared:
    return prepare(load_job(job.write()), fake_llm.inspect_model)


def files_of(job: Job, ready: Prepared, storage: LocalStorage | None = None) -> JobFiles:
    storage = storage or LocalStorage(ready.folders.file("tmp"))
    return JobFiles(storage, ready.folders.output, ready.folders.state, ready.plan, ready.form)


def units_of(ready: Prepared) -> list[Unit]:
    return [ready.plan.unit(index) for index in range(ready.plan.num_units)]


def commit_all(ready: Prepared, files: JobFiles, unit: Unit, rows: Any) -> None:
    """Commits these rows in one segment, as a run of the job would."""
    llm = fake_llm.LLM.from_summary(ready.model)
    some: list[Any] = [GenerateRow(None, row, f"prompt {row}", ready.job.sampling) for row in rows]
    finished = [row for rows in llm.serving.run([some]) for row in rows]
    detokenizer = Detokenizer(fake_llm.Tokenizer.token_bytes)
    files.commit(unit, [Results("generate", ready.form.results, detokenizer).batch(finished)])


def undisturbed(job: Job) -> dict[str, bytes]:
    assert job.run() == 0
    parts = job.parts()
    forget(job)
    return parts


def in_child(act: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(act())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
