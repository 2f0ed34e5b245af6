"""One run of a job, once it is prepared and claimed: find what is missing, serve it, finish."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ..rows import ErrorRow
from .config import JobConfig
from .folders import Folders
from .messages import shown
from .output.commit import Part
from .output.part_check import PartCheck
from .output.storage import Storage, StorageError
from .output.writer import Counts
from .plan import Shard, Unit
from .prepare import Prepared
from .report.display import ProgressKind
from .report.events import EventLog, machine
from .report.metrics_server import MetricsServer
from .report.progress import Progress
from .report.report import write_report
from .report.run_status import prometheus
from .report.summary import summarise
from .retry import Retried, retried, units_to_retry
from .serve import serve_here
from .state import check_rules, restore_job
from .stopping import StopSignals
from .workers.devices import Place
from .workers.messages import BadRow
from .workers.serve import serve_with_workers

SUCCESS = "_SUCCESS.json"


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
        retried: what became of the error rows that were served again; None where the run was not for that.
    """

    folders: Folders
    rows: int
    errors: int
    is_finished: bool
    is_complete: bool
    summary: tuple[str, ...] = ()
    stopped_at: str = ""
    retried: Retried | None = None

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


class ShardRun:
    """The part of a job that one process does, or has its workers do.

    Args:
        places: of the workers; None where this process serves.
        progress: how progress is shown.
    """

    def __init__(
        self,
        prepared: Prepared,
        places: Sequence[Place] | None,
        shard: Shard,
        stop: StopSignals,
        storage: Storage,
        log: EventLog,
        progress: ProgressKind = "auto",
    ) -> None:
        self._kind = progress
        self._prepared = prepared
        self._places = places
        self._plan, self._folders = prepared.plan, prepared.folders
        self._shard = shard
        self._stop = stop
        self._storage = storage
        self._log = log
        self._stopped_at = ""
        self._metrics_server: MetricsServer | None = None
        self._to_retry: dict[Unit, Retried] = {}
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
        """Returns the shard's units that are served: those that have no part yet, or, in a run that serves error rows
        again, those whose part has such rows. Removes segments that a crash left beside a part."""
        units = list(self._shard.units(self._plan))
        parts = self._files.parts(units, thorough=True)
        missing = [unit for unit, part in zip(units, parts, strict=True) if part is None]
        published = [unit for unit, part in zip(units, parts, strict=True) if part is not None]
        source = self._prepared.part_source()
        for unit in self._files.with_segments(published):
            self._files.settle(unit, source)
        if self._prepared.retry is not None:
            self._to_retry = units_to_retry(self._files, self._prepared.retry, units)
            missing = list(self._to_retry)
        if missing:
            self._storage.remove(self._folders.file(SUCCESS))
        return missing

    def serve(self, missing: Sequence[Unit], part_check: PartCheck) -> None:
        """Makes the parts of these units."""
        total = sum(unit.num_rows for unit in self._shard.units(self._plan))
        finished = total - sum(unit.num_rows for unit in missing)
        new_progress = partial(self._progress, total)
        bad: ErrorRow | BadRow | None
        with self._open_metrics_server():
            if self._places is None:
                started = partial(new_progress, finished)
                bad = serve_here(self._prepared, self._files, missing, part_check, self._stop, self._log, started)
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
        parts = self._files.parts([self._plan.unit(index) for index in range(self._plan.num_units)])
        mine = [parts[unit.index] for unit in self._shard.units(self._plan)]
        if None in mine and not self._stopped_at and self._prepared.retry is None:
            gone = FileNotFoundError(errno.ENOENT, "they were published, and removed while the job ran")
            raise StorageError(self._folders.output, f"read: {mine.count(None)} part(s) are missing", gone)
        finished = [part for part in mine if part is not None]
        outcome = Outcome(
            self._folders,
            retried=None if self._prepared.retry is None else retried(self._to_retry, parts),
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
        stopped = {"stopped_at": self._stopped_at} if self._stopped_at else {}
        self._log("end", rows=outcome.rows, errors=outcome.errors, **stopped)
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

        def write_metrics(values: Mapping[str, float]) -> None:
            self._storage.atomic_write(metrics_path, prometheus(values, *self._labels))

        timeout = job.run.worker_timeout if self._places is None else None
        columns = self._prepared.columns.overriding  # a row's own limit may be higher
        counts.lengths.limit = None if columns else job.sampling.max_tokens
        progress = Progress(total, counts, stats, self._log, write_metrics, job.task, timeout, self._kind)
        if self._metrics_server is not None:
            self._metrics_server.values = progress.values
        return progress

    @property
    def _labels(self) -> tuple[str, str]:
        """Of the metrics: the name of the output folder, and the shard."""
        return os.path.basename(self._folders.output.rstrip("/")), str(self._shard)

    @contextmanager
    def _open_metrics_server(self) -> Iterator[None]:
        """Gives the progress to Prometheus during its `with` block, where the job has a port for that."""
        if (port := self._prepared.job.run.metrics_port) is None:
            yield
            return
        self._metrics_server = MetricsServer(port, *self._labels)
        with closing(self._metrics_server):
            yield

    def _success(self, parts: Sequence[Part]) -> bytes:
        """The content of _SUCCESS.json: a function of the parts, so that two processes that end together agree."""
        content = {
            "fingerprint": self._prepared.document["fingerprint"],
            "rows": sum(part.rows for part in parts),
            "errors": sum(part.errors for part in parts),
            "parts": [asdict(part) for part in parts],
        }
        return json.dumps(content, indent=1).encode()


def _plain_settings(job: JobConfig) -> dict[str, Any]:
    """The job's settings in plain JSON, for the report."""
    return {**job.model_dump(exclude={"sampling"}), "sampling": asdict(job.sampling)}
