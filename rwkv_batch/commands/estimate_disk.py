"""The room that a job's output takes on disk, from parts made of sampled rows with texts of the expected length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..engine.admission import planning_window
from ..engine.request import Completion
from ..engine.token_scores import TokenScores
from ..job.output.results import Results
from ..job.prepare import Prepared
from ..rows import RowInFlight
from ..text.detokenizer import Detokenizer
from .estimate_sample import SEED, Sample, Window

MOST_RECORDS = 4096
"""Output rows of the part that is made."""


@dataclass(frozen=True)
class Disk:
    """Bytes of a job's files.

    Args:
        parts: of all parts.
        segments: of finished rows that are in no part yet, at a time.
        records: output rows of the part that was made.
    """

    parts: float
    segments: float
    records: int


class _Texts:
    """Token ids in the order of the sampled prompts, as texts of any length."""

    def __init__(self, rows: Sequence[RowInFlight], random: np.random.Generator) -> None:
        prompts = [np.asarray(row.requests[0].prompt_token_ids, np.int32) for row in rows if row.requests]
        self._ids = np.concatenate(prompts) if prompts else np.zeros(1, np.int32)
        self._place = 0
        self._random = random
        self.num_left = len(self._ids)

    def take(self, length: int) -> np.ndarray:
        """The next tokens; from the beginning again after the last one. A text longer than all of them is shuffled."""
        self.num_left -= length
        if length > len(self._ids):
            return self._random.choice(self._ids, length)
        found = np.take(self._ids, np.arange(self._place, self._place + length), mode="wrap")
        self._place = (self._place + length) % len(self._ids)
        return found


def disk_of(prepared: Prepared, sample: Sample, tokens_of_limit: float) -> Disk | None:
    """Estimates the bytes of a job's files; None where no sampled row can be served.

    A part is made of sampled rows, by the code and with the compression of the job. Their completions are stretches of
    the sampled prompts, so that they are as hard to compress as those.

    Args:
        tokens_of_limit: the expected tokens of a completion ÷ the most that it may have.
    """
    random = np.random.default_rng(SEED)
    texts = _Texts(sample.rows, random)
    tables, num_rows, num_records = [], 0, 0
    for window in sample.windows:
        rows = []
        for row in window.rows:
            if (texts.num_left <= 0 or num_records >= MOST_RECORDS) and num_rows:
                break
            _complete(row, texts, tokens_of_limit, random)
            rows.append(row)
            num_rows, num_records = num_rows + 1, num_records + max(1, len(row.completions))
        if rows:
            tables.append(_table(prepared, window, rows))
        for row in rows:
            row.completions.clear()
    if not tables:
        return None
    table = pa.concat_tables(tables)
    results = table.select(prepared.form.named_results().names)
    total, plan = prepared.plan.num_rows, prepared.plan
    in_part = min(table.num_rows, max(1, round(table.num_rows / num_rows * plan.rows_per_part)))
    part, smallest = (_bytes(prepared, table.slice(0, count)) for count in (in_part, 1))
    parts = plan.num_units * smallest + (part - smallest) * total * table.num_rows / num_rows / in_part
    waiting = planning_window(prepared.model.num_slots) // max(1, prepared.job.sampling.n)
    open_rows = min(total, (waiting // plan.rows_per_part + 2) * plan.rows_per_part)
    return Disk(parts, results.nbytes / num_rows * open_rows, table.num_rows)


def _complete(row: RowInFlight, texts: _Texts, share: float, random: np.random.Generator) -> None:
    """Gives a row completions, of as many tokens as is expected, and with random log-probabilities."""
    for request in row.requests:
        length = 0 if row.scoring is not None else max(1, round(request.params.token_limit * share))
        ids = texts.take(length)
        scored = 0 if request.score_start is None else max(0, len(request.prompt_token_ids) - request.score_start)
        row.completions.append(
            Completion(
                request,
                ids,
                -random.random(length),
                "length",
                text_tokens=length,
                prompt_scores=_scores(scored, random) if scored else None,
                next_scores=_scores(len(request.next_token_ids), random) if request.next_token_ids else None,
            )
        )


def _scores(count: int, random: np.random.Generator) -> TokenScores:
    return TokenScores(-random.random(count), random.random(count) < 0.5)


def _table(prepared: Prepared, window: Window, rows: Sequence[RowInFlight]) -> pa.Table:
    """The output rows of some rows of a window: the columns of the input that parts repeat, and results."""
    tokenizer, form = prepared.model.tokenizer, prepared.form
    detokenizer = None if tokenizer is None else Detokenizer(tokenizer.token_bytes)
    results = pa.Table.from_batches([Results(prepared.job.task, form.results, detokenizer).batch(rows)])
    indices = np.asarray(results["row"]) - window.start
    columns = {}
    if len(form.passed):
        stop = window.start + window.num_rows
        read = [one.batch for one in prepared.part_source().read(window.start, stop, form.passed.names)]
        passed = pa.Table.from_batches(read).take(pa.array(indices))
        columns = {field.name: passed[field.name].cast(field.type) for field in form.passed}
    names = form.named_results().names
    named = dict(zip(names, results.drop_columns("row").columns, strict=True))
    return pa.table({**columns, **named})


def _bytes(prepared: Prepared, table: pa.Table) -> int:
    """The bytes of a part."""
    form, sink = prepared.form, pa.BufferOutputStream()
    schema = form.schema(prepared.plan.unit(0), extra={"rows": prepared.plan.rows_per_part, "errors": 0})
    with pq.ParquetWriter(sink, schema, compression=form.codec.name, compression_level=form.codec.level) as out:
        out.write_table(table.cast(schema), row_group_size=form.row_group_rows)
    return len(sink.getvalue())
