"""The rows that are still to be served, in batches and in order."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..outputs import CompletionOutput, RequestOutput, ScoreOutput
from ..rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow
from .commit import JobFiles
from .plan import Unit
from .prepare import Prepared
from .results import Record, completed_row, failed_row, scored_row
from .rows import RowKey
from .writer import Writer

if TYPE_CHECKING:
    from ..engine.logprobs import TokenScores
    from ..engine.request import Completion


def missing_rows(
    prepared: Prepared, files: JobFiles, units: Sequence[Unit], writer: Writer
) -> Iterator[list[GenerateRow | ScoreRow | ErrorRow]]:
    """All rows that no segment holds. Each unit is announced to the writer before its first row comes out.

    The iterator may run on a thread of its own.
    """
    for unit in units:
        committed = files.committed_rows(unit)
        writer.begin(unit, len(committed))
        start = unit.start
        for batch in prepared.source.read(unit.start, unit.stop, prepared.columns.read):
            rows = range(start, start + batch.num_rows)
            start = rows.stop
            missing = [row for row in rows if row not in committed]
            if len(missing) < len(rows):
                batch = batch.take(pa.array([row - rows.start for row in missing], pa.int64()))
            if missing:
                yield prepared.parser.rows(batch, [RowKey(unit, row) for row in missing])


def served_rows(
    prepared: Prepared, llm: Any, batches: Iterator[list[GenerateRow | ScoreRow | ErrorRow]]
) -> Generator[tuple[RowKey, list[Record]], None, None]:
    """Each row's records, in the order in which rows finish."""
    stops = prepared.job.run.on_row_error == "stop"
    with closing(llm.serving.run(batches, stop_at_error=stops)) as lists:
        for finished in lists:
            for row in finished:
                yield row.key, _records(prepared, llm.tokenizer, row)


def _records(prepared: Prepared, tokenizer: Any, row: RowInFlight | ErrorRow) -> list[Record]:
    if isinstance(row, ErrorRow):
        return failed_row(prepared.job.task, row.error)
    if row.scoring is not None:
        found = zip(row.scoring.continuations, row.scoring.of_continuations(row.completions), strict=True)
        scores = [_score(ids.tolist(), scores) for ids, scores in found]
        return scored_row(scores, "choices" in prepared.columns.parts)
    outputs = [_output(tokenizer, index, completion) for index, completion in enumerate(row.completions)]
    return completed_row(RequestOutput(None, list(row.requests[0].prompt_token_ids), None, outputs))


def _score(ids: list[int], scores: TokenScores) -> ScoreOutput:
    logprobs = scores.logprobs.tolist()
    return ScoreOutput(math.fsum(logprobs), bool(scores.is_greedy.all()), logprobs, len(ids), ids)


def _output(tokenizer: Any, index: int, found: Completion) -> CompletionOutput:
    ids, logprobs = found.token_ids.tolist(), found.token_logprobs.tolist()
    text = b"".join(tokenizer.token_bytes[i] or b"" for i in ids[: found.text_tokens]) if tokenizer else b""
    return CompletionOutput(
        index,
        text[: found.text_bytes].decode(errors="replace"),
        ids,
        math.fsum(logprobs),
        None,
        found.finish_reason,
        found.stop_reason,
        logprobs,
    )
