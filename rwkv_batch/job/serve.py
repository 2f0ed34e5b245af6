"""The serving loop of a process that has a model: rows of its assignments are served, committed and published."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

from ..rows import ErrorRow, Finished
from .output.commit import JobFiles
from .output.part_check import PartCheck
from .output.results import Results
from .output.writer import Counts, Writer
from .plan import Assignment, Unit
from .prepare import Prepared, named_as_in_jobs
from .stopping import StopSignals
from .stream import Batch, missing_rows

logger = logging.getLogger(__name__)


class UnitServer:
    """Loads the model of a job, and serves rows.

    Args:
        log: writes an event, given its name and its fields.
        on_publish: called with each unit that is published, on the writer's thread.

    Attributes:
        llm: the model.
        writer: commits finished rows and publishes units while its `with` block runs.
        call: the running call of the model.
    """

    def __init__(
        self,
        prepared: Prepared,
        files: JobFiles,
        log: Callable[..., None],
        on_publish: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        job = prepared.job
        self.llm = _load_model(prepared)
        log("model", model=self.llm.describe())
        to_columns = Results(job.task, prepared.form.results, _detokenizer(self.llm.tokenizer)).batch
        flush_seconds = job.output.flush_seconds
        self.writer = Writer(files, prepared.part_source(), to_columns, flush_seconds, log, on_publish)
        self.call: Any = None
        self._stops_at_error = job.run.on_row_error == "stop"

    def run(self, batches: Iterable[Batch]) -> Generator[list[Finished], None, None]:
        """Serves rows, hands them to the writer as they finish, and yields them."""
        with closing(self.llm.serving.run(batches, stop_at_error=self._stops_at_error)) as self.call:
            for finished in self.call:
                self.writer.add(finished)
                yield finished


def serve_here(
    prepared: Prepared,
    files: JobFiles,
    missing: Sequence[Unit],
    part_check: PartCheck,
    stop: StopSignals,
    log: Callable[..., None],
    new_progress: Callable[[Counts, Callable[[], Any]], AbstractContextManager[Any]],
) -> ErrorRow | None:
    """Makes the parts of these units with an engine in this process.

    Args:
        new_progress: shows progress, given the counters of rows and of the engine.

    Returns:
        The row at which the job has ended, under run.on_row_error: stop.
    """
    with stop.interruptible():
        server = UnitServer(prepared, files, log)
    bad = None
    with new_progress(server.writer.counts, server.llm.stats), server.writer, stop.interruptible():
        rows = missing_rows(prepared, files, map(Assignment, missing), server.writer, part_check)
        with closing(server.run(rows)) as served:
            for finished in served:
                stop.check()
                if bad is None and prepared.job.run.on_row_error == "stop":
                    bad = next((row for row in finished if isinstance(row, ErrorRow)), None)
    return bad


def _detokenizer(tokenizer: Any) -> Any:
    from ..text.detokenizer import Detokenizer

    return None if tokenizer is None else Detokenizer(tokenizer.token_bytes)


def _load_model(prepared: Prepared) -> Any:
    from ..llm import LLM

    logger.info("loading the model, and compiling what its ops need")
    with named_as_in_jobs():
        return LLM.from_summary(prepared.model, max_prompt_tokens=prepared.job.input.max_prompt_tokens)
