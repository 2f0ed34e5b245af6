"""The rows that are still to be served, in batches and in order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa

from ..outputs import CompletionOutput, RequestOutput, ScoreOutput
from ..rows import ErrorRow, GenerateRow, ScoreRow
from .commit import JobFiles
from .plan import Unit
from .prepare import Prepared
from .results import Record, completed_row, failed_row, scored_row
from .rows import RowKey
from .writer import Writer


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


def _records(prepared: Prepared, tokenizer: Any, row: Any) -> list[Record]:
    if isinstance(row, ErrorRow):
        return failed_row(prepared.job.task, row.error)
    if row.scoring is not None:
        outputs = [
            ScoreOutput(
                float(scores.logprobs.sum()),
                bool(scores.is_greedy.all()),
                scores.logprobs.tolist(),
                len(scores),
                ids.tolist(),
            )
            for ids, scores in zip(row.scoring.continuations, row.scoring.of_continuations(row.completions))
        ]
        return scored_row(outputs, "choices" in prepared.columns.parts)
    outputs = []
    for i, found in enumerate(row.completions):
        ids = found.token_ids.tolist()
        text = b"".join(tokenizer.token_bytes[j] or b"" for j in ids[: found.text_tokens]) if tokenizer else b""
        outputs.append(
            CompletionOutput(
                i,
                text[: found.text_bytes].decode(errors="replace"),
                ids,
                float(found.token_logprobs.sum()),
                None,
                found.finish_reason,
                found.stop_reason,
                found.token_logprobs.tolist(),
            )
        )
    prompt = list(row.completions[0].request.prompt_token_ids)
    return completed_row(RequestOutput(None, prompt, None, outputs))
