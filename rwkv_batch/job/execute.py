"""One run of a job: prepare, compare with the state folder, serve the missing rows, finish."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from ..rows import ErrorRow
from ..settings import EngineSettings, ModelSettings
from .chat import OLDER
from .claiming import ClaimedShard
from .config import JobConfig
from .dry_run import describe, read_first_rows
from .folders import Folders, check_honours_conditions
from .load import load_job
from .messages import shown
from .output.commit import Part
from .output.part_check import PartCheck
from .output.storage import Storage, StorageError
from .output.writer import Counts
from .plan import Shard, Unit, parse_shard
from .prepare import Prepared, prepare
from .report.events import EventLog, machine
from .report.progress import Progress
from .report.report import summarise, write_report
from .serve import serve_here
from .state import check_rules, compare_job, has_parts, num_parts, open_job, restore_job
from .stopping import StopSignals
from .workers.devices import Place, worker_places
from .workers.messages import BadRow
from .workers.serve import inspect_for, serve_with_workers

SUCCESS = "_SUCCESS.json"
TRIAL = "this is a trial, with an output of its own; without --limit the whole job starts fresh beside it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Args:
        folders: the output folder and the state folder.
        rows: input rows in this shard's published parts, whichever run made them.
        errors: those of `rows` that are errors.
        is_finished: all parts of this shard are published. False where run.on_row_error: stop has ended the run.
        is_complete: all parts of all shards are published.
        summary: the report in a few lines; empty where other shards are still at work.
        stopped_at: the row that has ended the run, with its error, in words; "" where none has.
    """

    folders: Folders
    rows: int
    errors: int
    is_finished: bool
    is_complete: bool
    summary: tuple[str, ...] = ()
    stopped_at: str = ""

    @property
    def output(self) -> str:
        """The folder with the parts: an absolute path, or an address in an object store."""
        return self.folders.output

    @property
    def report(self) -> str | None:
        """The absolute path or address of report.html; None where other shards are still at work.

        report.json lies beside it.
        """
        return self.folders.file("report.html") if self.summary else None


JobSource: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A job file, or a mapping with the same content."""

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""Settings that replace the job's: "section.key" → value, or texts "section.key=value" as on the command line."""


def check_job(
    job: JobSource, overrides: Overrides = (), shard: str | None = None, *, limit: int | None = None, stop: StopSignals
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
        started = _check_output(prepared, storage, prepared.part_check())
        prepared = prepared.started_as(started) if started else prepared
        if num_parts(storage, prepared.folders) < prepared.plan.num_units:
            check_rules(prepared.other_rules, prepared.folders)
        first = read_first_rows(prepared)
        lines = [*([TRIAL] if limit is not None else []), *describe(prepared, parse_shard(shard, {}), first)]
        return "\n".join(lines), not first.are_errors


def run_job(
    job: JobSource,
    overrides: Overrides = (),
    shard: str | None = None,
    *,
    limit: int | None = None,
    stop: StopSignals | None = None,
) -> Outcome:
    """Makes the parts of a job that earlier runs have not made. May be called in any thread.

    While another run serves the same shard, in this process or elsewhere, it waits.

    >>> import pyarrow, pyarrow.parquet, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> pyarrow.parquet.write_table(pyarrow.table({"prompt": ["import ", "def f("]}), f"{folder}/prompts.parquet")
    >>> job = {
    ...     "model": {"path": "demo"},
    ...     "input": {"path": f"{folder}/prompts.parquet"},
    ...     "output": {"path": f"{folder}/out"},
    ... }
    >>> outcome = run_job(job, {"engine.device": "cpu", "sampling.max_tokens": 4})
    >>> outcome.rows, outcome.errors, outcome.is_complete
    (2, 0, True)
    >>> pyarrow.parquet.read_table(outcome.output)["completion_tokens"].to_pylist()
    [4, 4]

    Called in the main thread, it handles the signals that end a process (SIGINT, which is Ctrl-C, SIGTERM, SIGHUP,
    SIGUSR1) if the program neither handles nor ignores them: it commits finished rows and raises `Stopped`. A second
    signal has the effect that it had before the call; Ctrl-C raises KeyboardInterrupt at once. In other threads it
    handles no signals.

    Args:
        job: a job file, or a mapping with the same content. Relative paths are relative to the current folder.
        overrides: settings that replace the job's, for example {"sampling.max_tokens": 32}; or texts such as
            "sampling.max_tokens=32".
        shard: "i/n" makes the units i, i + n, …, with i from 0; None makes all.
        limit: makes a trial with this many rows, the first ones, in an output of its own: "<output>-limit-N".
        stop: the signal handling of `rwkv-batch run`. A program leaves it out.

    Raises:
        ConfigurationError, CheckpointError, BackendError: the job is wrong; nothing has been written.
        MissingExtraError: an optional package that the job needs is missing; nothing has been written.
        ResumeError: the output folder belongs to another job.
        CapacityError: the device is missing or too small.
        Stopped: a signal came, or another process has taken over; finished rows are committed.
        OSError: the disk is full or broken; committed rows stay.
    """
    with stop or StopSignals() as stop:
        part = parse_shard(shard, {})
        with stop.interruptible():
            config = load_job(job, overrides, limit)
            prepared = prepare(config, _inspection(places := worker_places(config)))
            folders, part_check = prepared.folders, prepared.part_check()
            storage = folders.open_storage()
            check_honours_conditions(folders, storage)
            started = _check_output(prepared, storage, part_check)
            _announce(prepared, is_trial=limit is not None)
        return _run_alone(prepared, places, part, stop, storage, started, part_check)


def _run_alone(
    prepared: Prepared,
    places: Sequence[Place] | None,
    shard: Shard,
    stop: StopSignals,
    storage: Storage,
    started: dict[str, Any] | None,
    part_check: PartCheck,
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
            return _Run(prepared, places, shard, stop, storage, log).make(part_check)


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


class _Run:
    """The part of a job that one process does, or has its workers do.

    Args:
        places: of the workers; None where this process serves.
    """

    def __init__(
        self,
        prepared: Prepared,
        places: Sequence[Place] | None,
        shard: Shard,
        stop: StopSignals,
        storage: Storage,
        log: EventLog,
    ) -> None:
        self._prepared = prepared
        self._places = places
        self._plan, self._folders = prepared.plan, prepared.folders
        self._shard = shard
        self._stop = stop
        self._storage = storage
        self._log = log
        self._stopped_at = ""
        self._files = prepared.files(storage)
        chat = None if prepared.chat is None else prepared.chat.describe()
        scratch = {"scratch": self._folders.scratch} if self._folders.is_scratch_written else {}
        log("start", config=_plain_settings(prepared.job), chat=chat, machine=machine(), **scratch)

    def make(self, part_check: PartCheck) -> Outcome:
        """Makes the parts that are missing. However it ends, job.json is there afterwards."""
        missing = self.survey()
        try:
            if missing:
                check_rules(self._prepared.other_rules, self._folders)
                self.serve(missing, part_check)
        finally:
            restore_job(self._storage, self._folders, self._prepared.document)
        return self.finish()

    def survey(self) -> list[Unit]:
        """Returns the shard's units that have no part yet. Removes segments that a crash left beside a part."""
        missing = []
        for unit in self._shard.units(self._plan):
            if self._files.part(unit, thorough=True) is None:
                missing.append(unit)
            else:
                self._files.drop_segments(unit)
        if missing:
            self._storage.remove(self._folders.file(SUCCESS))
        return missing

    def serve(self, missing: Sequence[Unit], part_check: PartCheck) -> None:
        """Makes the parts of these units."""
        total = sum(unit.num_rows for unit in self._shard.units(self._plan))
        finished = total - sum(unit.num_rows for unit in missing)
        new_progress = partial(self._progress, total)
        bad: ErrorRow | BadRow | None
        if self._places is None:
            bad = serve_here(
                self._prepared, self._files, missing, part_check, self._stop, self._log, partial(new_progress, finished)
            )
        else:
            bad = serve_with_workers(
                self._prepared, self._places, missing, finished, self._stop, self._log, partial(new_progress, 0)
            )
        if bad is not None:
            self._stopped_at = self._described(bad)

    def finish(self) -> Outcome:
        """Reads all parts. Where none is missing, writes _SUCCESS.json: the process that ends last finds them all.

        Raises:
            ResumeError: the parts are there, but the input has changed meanwhile.
            StorageError: a published part of this shard is gone.
        """
        parts = [self._files.part(self._plan.unit(index)) for index in range(self._plan.num_units)]
        mine = [parts[unit.index] for unit in self._shard.units(self._plan)]
        if None in mine and not self._stopped_at:
            gone = FileNotFoundError(errno.ENOENT, "they were published, and removed while the job ran")
            raise StorageError(self._folders.output, f"read: {mine.count(None)} part(s) are missing", gone)
        finished = [part for part in mine if part is not None]
        outcome = Outcome(
            self._folders,
            rows=sum(part.rows for part in finished),
            errors=sum(part.errors for part in finished),
            is_finished=None not in mine,
            is_complete=None not in parts,
            stopped_at=self._stopped_at,
        )
        if outcome.is_complete:
            self._prepared.source.check_unchanged()
            self._storage.atomic_write(self._folders.file(SUCCESS), self._success([part for part in parts if part]))
        if self._files.damaged:
            self._log("damaged", files=sorted(self._files.damaged))
        self._log("end", rows=outcome.rows, errors=outcome.errors)
        if outcome.is_complete or self._shard.count == 1:
            report = write_report(self._storage, self._folders)
            outcome = replace(outcome, summary=tuple(summarise(report)))
        return outcome

    def _described(self, row: ErrorRow | BadRow) -> str:
        """Names an error row with its id, and its error."""
        named = ""
        if name := self._prepared.columns.id:
            (found,) = self._prepared.source.read(row.row, row.row + 1, [name])
            named = f" ({name} {shown(found.batch[name][0].as_py())})"
        return f"row {row.row}{named}: {row.error.code}: {row.error.message}"

    def _progress(self, total: int, finished: int, counts: Counts, stats: Callable[[], Any]) -> Progress:
        """Shows progress.

        Args:
            total: rows of this shard.
            finished: those that `counts` does not know of, because earlier runs have published them.
        """
        counts.resume(finished)
        job = self._prepared.job
        metrics_path = self._folders.file(self._shard.file_name("metrics", "prom"))
        write_metrics = partial(self._storage.atomic_write, metrics_path)
        timeout = job.run.worker_timeout if self._places is None else None
        return Progress(total, counts, stats, self._log, write_metrics, self._shard, job.task, timeout)

    def _success(self, parts: Sequence[Part]) -> bytes:
        """The content of _SUCCESS.json: a function of the parts, so that two processes that end together agree."""
        content = {
            "fingerprint": self._prepared.document["fingerprint"],
            "rows": sum(part.rows for part in parts),
            "errors": sum(part.errors for part in parts),
            "parts": [asdict(part) for part in parts],
        }
        return json.dumps(content, indent=1).encode()


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


def _plain_settings(job: JobConfig) -> dict[str, Any]:
    """The job's settings in plain JSON, for the report."""
    return {**job.model_dump(exclude={"sampling"}), "sampling": asdict(job.sampling)}
