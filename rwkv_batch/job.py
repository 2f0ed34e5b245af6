"""The story of one run of a job: prepare, compare with what is there, serve what is missing, finish."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from .config import JobConfig
from .data.commit import JobFiles, Part
from .data.events import EventLog
from .data.plan import Shard, Unit
from .data.prepare import Prepared, describe, hardware, model_arguments, prepare, software
from .data.progress import Progress
from .data.report import write_report
from .data.state import Folders, compare_job, open_job
from .data.stopping import StopSignals
from .data.storage import LocalStorage, Storage
from .data.stream import missing_rows, served_rows
from .data.writer import Writer

SUCCESS = "_SUCCESS.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        rows, errors: of this shard's published parts, whichever run made them.
        is_finished: this shard has nothing left to do.
        is_complete: nor has any other.
    """

    folders: Folders
    rows: int
    errors: int
    is_finished: bool
    is_complete: bool


def check_job(job: JobConfig, stop: StopSignals) -> str:
    """What the job would do, as text. Reads the input and the model's sizes; writes nothing.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, ResumeError: as `run_job` would.
    """
    with stop.interruptible():
        prepared = prepare(job, _inspect_model)
        compare_job(LocalStorage(prepared.folders.file("tmp")), prepared.folders, prepared.document)
        return "\n".join(describe(prepared))


def run_job(job: JobConfig, shard: Shard, stop: StopSignals) -> Outcome:
    """Make this shard's parts of a job, or what earlier runs have left of them.

    Raises:
        ConfigurationError, CheckpointError, BackendError: the job is wrong; nothing has been written.
        ResumeError: the output folder belongs to another job.
        CapacityError: the device is missing or too small.
        Stopped: a signal came; what was finished is committed.
        OSError: the disk is full or broken; what was committed stays.
    """
    with stop.interruptible():
        prepared = prepare(job, _inspect_model)
    folders = prepared.folders
    storage = LocalStorage(folders.file("tmp"))
    open_job(storage, folders, prepared.document)
    storage.sweep()
    files = JobFiles(storage, folders.output, folders.state, prepared.plan, prepared.form)
    with EventLog(folders.file(shard.file_name("log", "jsonl")), shard=str(shard)) as log:
        log("start", config=_shown(job), host=socket.gethostname(), software=software(), hardware=hardware())
        published = _published(files, prepared, shard)
        if None in published.values():
            storage.remove(folders.file(SUCCESS))
            _serve(prepared, files, published, shard, stop, storage, log)
        outcome = _finish(prepared, files, shard, storage)
        log(
            "end", rows=outcome.rows, errors=outcome.errors, complete=outcome.is_complete, damaged=sorted(files.damaged)
        )
        if outcome.is_complete or shard.count == 1:
            write_report(storage, folders)
    return outcome


def _published(files: JobFiles, prepared: Prepared, shard: Shard) -> dict[Unit, Part | None]:
    """The shard's units with their parts; what a crash left beside a part is swept."""
    published = {unit: files.part(unit) for unit in shard.units(prepared.plan)}
    for unit, part in published.items():
        if part is not None:
            files.drop_segments(unit)
    return published


def _serve(
    prepared: Prepared,
    files: JobFiles,
    published: Mapping[Unit, Part | None],
    shard: Shard,
    stop: StopSignals,
    storage: Storage,
    log: EventLog,
) -> None:
    """Load the model and make the parts that are missing."""
    job, folders = prepared.job, prepared.folders
    with stop.interruptible():
        llm = _load_model(job)
    log("model", model=llm.describe())
    missing = [unit for unit, part in published.items() if part is None]
    writer = Writer(files, prepared.read_passed, job.output.flush_seconds, log)
    writer.counts.resume(sum(part.rows for part in published.values() if part is not None))
    metrics_path = folders.file(shard.file_name("metrics", "prom"))
    progress = Progress(
        rows_total=sum(unit.num_rows for unit in published),
        counts=writer.counts,
        stats=llm.stats,
        log=log,
        write_metrics=lambda text: storage.atomic_write(metrics_path, text),
        shard=shard,
    )
    with progress, writer, stop.interruptible():
        requests = missing_rows(prepared, files, missing, writer)
        with closing(served_rows(prepared, llm, requests)) as served:
            for key, records in served:
                writer.add(key.unit, key.row, records)
                if records[0]["status"] == "error" and job.run.on_row_error == "stop":
                    break


def _finish(prepared: Prepared, files: JobFiles, shard: Shard, storage: Storage) -> Outcome:
    """Look at all parts, and where none is missing say so in _SUCCESS.json: whoever is last finds them complete."""
    plan, folders = prepared.plan, prepared.folders
    parts = [files.part(plan.unit(index)) for index in range(plan.num_units)]
    present = [part for part in parts if part is not None]
    is_complete = len(present) == plan.num_units
    if is_complete:
        totals = {"rows": sum(part.rows for part in present), "errors": sum(part.errors for part in present)}
        success = {
            "fingerprint": prepared.document["fingerprint"],
            **totals,
            "parts": [asdict(part) for part in present],
        }
        storage.atomic_write(folders.file(SUCCESS), json.dumps(success, indent=1).encode())
    mine = [parts[unit.index] for unit in shard.units(plan)]
    finished = [part for part in mine if part is not None]
    rows, errors = sum(part.rows for part in finished), sum(part.errors for part in finished)
    return Outcome(folders, rows, errors, len(finished) == len(mine), is_complete)


def _inspect_model(**arguments: Any) -> Any:
    from .llm import inspect_model

    return inspect_model(**arguments)


def _load_model(job: JobConfig) -> Any:
    from .llm import LLM

    engine = job.engine
    return LLM(
        **model_arguments(job),
        backend=engine.backend,
        prefix_sharing=engine.prefix_sharing,
        batch_invariant=engine.batch_invariant,
        seed=job.sampling.seed or 0,
    )


def _shown(job: JobConfig) -> dict[str, Any]:
    """The settings as the report shows them."""
    return {**job.model_dump(exclude={"sampling"}), "sampling": asdict(job.sampling)}
