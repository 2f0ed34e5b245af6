"""The rows that are still to be served, in order, and what comes back for them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import RowError
from .commit import JobFiles
from .plan import Unit
from .prepare import Prepared
from .results import Record, completed_row, failed_row, scored_row
from .rows import Request
from .writer import Writer


class RowKey(NamedTuple):
    """Which row of the input, and the unit it belongs to."""

    unit: Unit
    row: int


def missing_rows(
    prepared: Prepared, files: JobFiles, units: Sequence[Unit], writer: Writer
) -> Iterator[tuple[RowKey, Request]]:
    """Requests of all rows that no segment holds. Bad rows go to the writer directly, and never to the engine."""
    for unit in units:
        committed = files.committed_rows(unit)
        writer.begin(unit, len(committed))
        row = unit.start
        for batch in prepared.source.read(unit.start, unit.stop, prepared.columns.read):
            for request in prepared.maker.requests(batch):
                if row in committed:
                    pass
                elif isinstance(request, RowError):
                    writer.add(unit, row, failed_row(prepared.job.task, request))
                    if prepared.job.run.on_row_error == "stop":
                        return
                else:
                    yield RowKey(unit, row), request
                row += 1


def served_rows(
    prepared: Prepared, llm: Any, requests: Iterator[tuple[RowKey, Request]]
) -> Generator[tuple[RowKey, list[Record]], None, None]:
    """Each request's records, in the order in which the engine finishes them."""
    from ..llm import GenerateRow, ScoreRow

    if prepared.job.task == "score":
        is_list = "choices" in prepared.columns.parts
        add_bos_token = prepared.job.score.add_bos_token
        contexts = (
            ScoreRow(key, key.row, request.prompt, request.continuations, add_bos_token) for key, request in requests
        )
        for key, scores in llm.serve_scores(contexts):
            yield key, scored_row(scores, is_list)
    else:
        prompts = (GenerateRow(key, key.row, request.prompt, request.params) for key, request in requests)
        for key, output in llm.serve(prompts):
            yield key, completed_row(output)
