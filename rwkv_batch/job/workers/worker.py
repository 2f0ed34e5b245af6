"""A worker: a process with an engine, which serves units of a job as a coordinator hands them out."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from ...errors import ConfigurationError, RwkvBatchError
from ...message_process import sendable
from ...rows import ErrorRow, Finished
from ..fingerprint import differences
from ..output.length_counts import completion_lengths
from ..output.writer import scored_tokens
from ..plan import Assignment, Unit
from ..prepare import Prepared, prepare
from ..report.events import memory
from ..retry import as_retry
from ..serve import UnitServer
from ..stream import Batch, missing_rows
from .messages import (
    Ask,
    BadRow,
    Begun,
    Close,
    Committed,
    Crashed,
    Done,
    Event,
    Failed,
    Left,
    Message,
    Published,
    Ready,
    Served,
    Start,
    Status,
    Stop,
    Taken,
)

STATUS_SECONDS = 1.0

logger = logging.getLogger(__name__)


class JobWorker:
    """The worker, whatever carries its messages.

    Args:
        start: what to serve.
        send: sends a message to the coordinator. A `Taken` has arrived, or will whatever happens to this process, when
            the call returns. Any thread may call.
    """

    def __init__(self, start: Start, send: Callable[[Message], None]) -> None:
        self._start = start
        self._send = send
        self._assignments: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._server: UnitServer | None = None
        self._is_stopped = False
        self._ending = threading.Event()
        self._missing: dict[int, int] = {}  # unit of an assignment of single rows → how many are not finished

    def take(self, message: Assignment | Close | Stop) -> None:
        """Takes a message of the coordinator. Any thread may call, and a signal handler."""
        if isinstance(message, Assignment):
            self._assignments.put(message)
            return
        if isinstance(message, Stop):
            self._is_stopped = True
            if self._server is not None and self._server.call is not None:
                self._server.call.cancel()
        self._assignments.put(None)

    def run(self) -> None:
        """Serves until there are no further units, or until the job fails. Does not raise."""
        beat = threading.Thread(target=self._beat, name="rwkv_batch-status", daemon=True)
        beat.start()
        try:
            self._serve()
            last: Message = Left()
        except (RwkvBatchError, OSError) as error:
            logger.debug("the failure in full", exc_info=True)
            last = Failed(sendable(error))
        except BaseException as error:
            traceback.print_exc()
            last = Crashed(f"{type(error).__name__}: {error}")
        self._ending.set()
        beat.join()
        self._send(last)

    def _serve(self) -> None:
        prepared = prepare_again(self._start)
        files = prepared.files(prepared.folders.open_storage())
        self._server = server = UnitServer(prepared, files, self._log, self._published)
        self._send(Ready())
        part_check = prepared.part_check()
        rows = missing_rows(prepared, files, self._assigned(), server.writer, part_check, on_begin=self._begun)
        with server.writer, closing(server.run(self._announced(rows))) as served:
            for finished in served:
                self._report(finished, prepared, server)
                if self._is_stopped:
                    break
        if files.damaged:
            self._log("damaged", files=sorted(files.damaged))
        self._log("memory", memory=memory())

    def _assigned(self) -> Iterator[Assignment]:
        """The assignments. This runs on the thread that reads rows ahead."""
        while not self._is_stopped:
            self._send(Ask())
            assignment = self._assignments.get()
            if assignment is None:
                return
            yield assignment

    def _begun(self, assignment: Assignment, committed: int, missing: int) -> None:
        unit = assignment.unit.index
        self._send(Begun(unit, committed))
        if assignment.rows is not None:
            if missing:
                self._missing[unit] = missing
            else:
                self._send(Done(unit))

    def _announced(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Passes batches on, and says first which rows they have: if one of them ends this process, it is known."""
        for batch in batches:
            self._send(Taken([row.row for row in batch]))
            yield batch

    def _report(self, finished: list[Finished], prepared: Prepared, server: UnitServer) -> None:
        """Says which rows are finished. Commits an assignment of single rows when its last row is finished."""
        errors = [row for row in finished if isinstance(row, ErrorRow)]
        rows, lengths = [_number(row) for row in finished], completion_lengths(finished)
        self._send(Served(rows, len(errors), scored_tokens(finished), lengths))
        if errors and prepared.job.run.on_row_error == "stop":
            self._send(BadRow(errors[0].row, errors[0].error))
            self.take(Stop())
        for row in finished if self._missing else ():
            key: Any = row.key
            unit: Unit = key.unit
            if unit.index in self._missing:
                self._missing[unit.index] -= 1
                if not self._missing[unit.index]:
                    del self._missing[unit.index]
                    server.writer.commit(partial(self._send, Done(unit.index)))

    def _published(self, unit: Unit) -> None:
        """Runs on the writer's thread."""
        self._send(Published(unit.index))

    def _log(self, event: str, **fields: Any) -> None:
        self._send(Event(event, fields))
        if event == "commit":
            self._send(Committed(fields["unit"], fields["rows"]))

    def _beat(self) -> None:
        """The loop of a thread."""
        while not self._ending.wait(STATUS_SECONDS):
            self._send(self._status())
        if self._server is not None:
            self._send(self._status())

    def _status(self) -> Status:
        if self._server is None:
            return Status(None)
        return Status(self._server.llm.stats(), self._server.writer.counts.wait_seconds)


def prepare_again(start: Start) -> Prepared:
    """Prepares a job as its coordinator has done, in the process of a worker.

    Raises:
        ConfigurationError: the results would differ, as the model or the package does on this machine.
        CheckpointError, CapacityError, ...: as `prepare`.
    """
    from ...llm import inspect_model

    def inspect(model: Any, engine: Any) -> Any:
        summary = inspect_model(model, engine)
        known = start.model_fingerprint
        return summary if known is None else replace(summary, known_fingerprint=known)

    logging.getLogger(inspect_model.__module__).setLevel(logging.ERROR)  # the coordinator has logged the same
    prepared = as_retry(prepare(start.job, inspect, start.source), start.document, start.retry)
    recorded = start.document["settings"]
    if changes := differences(recorded, prepared.document["settings"]):
        lines = "".join(f"\n  {change}" for change in changes)
        raise ConfigurationError(
            f"the worker on {socket.gethostname()} would make other results than the job's:{lines}\n"
            "Give all machines the same model files, and the same version of rwkv_batch"
        )
    return prepared.started_as(start.document)


def _number(row: Finished) -> int:
    return row.row if isinstance(row, ErrorRow) else row.row.row
