"""The two things that are done with a job: a run of it, and a description of what a run would do."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from ..settings import EngineSettings, ModelSettings
from .chat import OLDER
from .claiming import ClaimedShard
from .dry_run import describe, read_first_rows
from .folders import check_honours_conditions
from .load import load_job
from .output.part_check import PartCheck
from .output.storage import Storage
from .plan import Shard, parse_shard
from .prepare import Prepared, prepare
from .report.display import ProgressKind, check_kind
from .report.events import EventLog
from .retry import RetryErrors, describe_retry, with_retry
from .shard_run import Outcome, ShardRun
from .state import check_rules, compare_job, has_parts, num_parts, open_job
from .stopping import StopSignals
from .workers.devices import Place, worker_places
from .workers.serve import inspect_for

TRIAL = "this is a trial, with an output of its own; without --limit the whole job starts fresh beside it"

logger = logging.getLogger(__name__)


JobSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A job file, or a mapping with the same content."""

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Settings that replace the job's: "section.key" → value, or texts "section.key=value" as on the command line."""


def check_job(
    job: JobSource,
    overrides: Overrides = (),
    shard: str | None = None,
    *,
    limit: int | None = None,
    stop: StopSignals,
    retry_errors: RetryErrors = False,
) -> tuple[str, bool]:
    """Describes in text what the job would do. Reads the input and the model's sizes; writes nothing, and does not use
    GPUs in this process.

    Returns:
        The text, and whether the job makes sense so far: not each of the first rows is an error.

    Args: as those of `run_job`.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, MissingExtraError, ResumeError: as `run_job` would.
    """
    with stop, stop.interruptible():
        config = load_job(job, overrides, limit)
        prepared = prepare(config, _inspection(worker_places(config), apart=True))
        storage = prepared.folders.open_storage()
        prepared = with_retry(prepared, storage, retry_errors)
        started = _check_output(prepared, storage, prepared.part_check())
        prepared = prepared.started_as(started) if started else prepared
        if num_parts(storage, prepared.folders) < prepared.plan.num_units:
            check_rules(prepared.other_rules, prepared.folders)
        first, part = read_first_rows(prepared), parse_shard(shard, {})
        lines = [*([TRIAL] if limit is not None else []), *describe(prepared, part, first)]
        lines += describe_retry(prepared, storage, part.units(prepared.plan))
        return "\n".join(lines), not first.are_errors


def run_job(
    job: JobSource,
    overrides: Overrides = (),
    shard: str | None = None,
    *,
    limit: int | None = None,
    stop: StopSignals | None = None,
    retry_errors: RetryErrors = False,
    progress: ProgressKind = "auto",
) -> Outcome:
    """Makes the parts of a job that earlier runs have not made. May be called in any thread.

    While another run serves the same shard, in this process or elsewhere, it waits.

    >>> import pyarrow, pyarrow.parquet, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> pyarrow.parquet.write_table(pyarrow.table({"prompt": ["import ", "def f("]}), f"{folder}/prompts.parquet")
    >>> job = {"model": {"path": "demo"}, "input": {"path": f"{folder}/prompts.parquet"}}
    >>> outcome = run_job(job, {"output.path": f"{folder}/out", "engine.device": "cpu", "sampling.max_tokens": 4})
    >>> outcome.rows, outcome.errors, outcome.is_complete
    (2, 0, True)
    >>> pyarrow.parquet.read_table(outcome.output)["completion_tokens"].to_pylist()
    [4, 4]

    In the main thread it handles the signals that end a process (SIGINT, which is Ctrl-C, SIGTERM, SIGHUP, SIGUSR1) if
    the program neither handles nor ignores them: it commits finished rows and raises `Stopped`. A second signal has the
    effect that it had before the call; Ctrl-C raises KeyboardInterrupt at once. Other threads handle no signals.

    Args:
        job: a job file, or a mapping with the same content. Relative paths are relative to the current folder.
        overrides: settings that replace the job's: {"sampling.max_tokens": 32}, or texts like "sampling.max_tokens=32".
        shard: "i/n" makes the units i, i + n, …, with i from 0; None makes all.
        limit: makes a trial with this many rows, the first ones, in an output of its own: "<output>-limit-N".
        stop: the signal handling of `rwkv-batch run`. A program leaves it out.
        retry_errors: serves the error rows in published parts again, and nothing else: True for all, or a list of error
            codes. `input.max_prompt_tokens` may differ from that of the first run.
        progress: what standard error shows: "auto" (a bar on a terminal, else lines), "bar", "lines", "json" or "none".

    Raises:
        ConfigurationError, CheckpointError, BackendError, MissingExtraError: the job is wrong, or an optional package
            is missing; nothing has been written.
        ResumeError: the output folder belongs to another job.
        CapacityError: the device is missing or too small.
        Stopped: a signal came, or another process has taken over; finished rows are committed.
        OSError: the disk is full or broken; committed rows stay.
    """
    check_kind(progress)
    with stop or StopSignals() as stop:
        part = parse_shard(shard, {})
        with stop.interruptible():
            config = load_job(job, overrides, limit)
            prepared = prepare(config, _inspection(places := worker_places(config)))
            folders, part_check = prepared.folders, prepared.part_check()
            storage = folders.open_storage()
            check_honours_conditions(folders, storage)
            prepared = with_retry(prepared, storage, retry_errors)
            started = _check_output(prepared, storage, part_check)
            _announce(prepared, is_trial=limit is not None)
        return _run_alone(prepared, places, part, stop, storage, started, part_check, progress)


def _run_alone(
    prepared: Prepared,
    places: Sequence[Place] | None,
    shard: Shard,
    stop: StopSignals,
    storage: Storage,
    started: dict[str, Any] | None,
    part_check: PartCheck,
    progress: ProgressKind,
) -> Outcome:
    """Makes the parts that are missing as soon as no other run serves the shard.

    Args:
        started: the content of job.json; None where there is none.
    """
    folders, document, files = prepared.folders, prepared.document, prepared.source.files
    run = os.urandom(4).hex()
    with ClaimedShard(storage, folders, shard, stop, run) as claim:
        with stop.interruptible():
            if claim.has_waited:
                started = compare_job(storage, folders, document, files)
            prepared = prepared.started_as(open_job(storage, folders, document, files, started))
        storage.sweep()
        with EventLog(storage, folders.file(shard.file_name("log", "jsonl")), shard=str(shard), run=run) as log:
            return ShardRun(prepared, places, shard, stop, storage, log, progress).make(part_check)


def _check_output(prepared: Prepared, storage: Storage, part_check: PartCheck) -> dict[str, Any] | None:
    """Compares the job with its job.json, and makes test parts if no part is published.

    A part that cannot be written after others are published is no reason to stop: see `rwkv_batch.job.output.parts`.

    Returns:
        The content of job.json; None where there is no such file.
    """
    started = compare_job(storage, prepared.folders, prepared.document, prepared.source.files)
    if not has_parts(storage, prepared.folders):
        part_check.check()
    return started


def _announce(prepared: Prepared, is_trial: bool) -> None:
    """Logs what a user may not expect of this run."""
    if is_trial:
        logger.info("%s: %s", TRIAL, prepared.folders.output)
    if prepared.folders.is_scratch_written:
        logger.info("rows whose part is not made yet are kept in %s", prepared.folders.scratch)
    if overriding := prepared.columns.overriding:
        logger.info("sampled as the columns %s say, where they are not null", ", ".join(overriding))
    if prepared.chat is not None:
        logger.info("%s", OLDER if prepared.chat.is_older else "; ".join(map(str.strip, prepared.chat.lines())))


def _inspection(places: Sequence[Place] | None, apart: bool = False) -> Callable[[ModelSettings, EngineSettings], Any]:
    """Returns what inspects the model.

    Args:
        places: of the workers; None where this process serves.
        apart: this process initializes no GPU.
    """
    if places is not None:
        return partial(inspect_for, places)
    from ..llm import inspect_model

    return partial(inspect_model, apart=apart)
