"""The description of a job that --dry-run prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RowError
from ..rows import ErrorRow, GenerateRow, ScoreRow
from .input.rows import RowKey
from .input.table import BATCH_ROWS
from .plan import Shard
from .prepare import Prepared

SHOWN_UNITS = 8
SHOWN_TOKENS = 32
SHOWN_LENGTH = 10_000
"""Characters, or token ids, of a prompt."""


@dataclass
class ErrorCount:
    """The rows with one error code: their number, and the first one."""

    row: int
    message: str
    count: int = 0


@dataclass
class FirstRows:
    """What became of the first rows of the input.

    Attributes:
        row: the first row that can be served, if there is one.
        token_ids: of that row's prompt; of task score what is read before a continuation, token 0 and prefix included.
        errors: by error code, in the order of the rows.
    """

    num_read: int = 0
    row: GenerateRow | ScoreRow | None = None
    token_ids: list[int] = field(default_factory=list)
    errors: dict[str, ErrorCount] = field(default_factory=dict)

    @property
    def are_errors(self) -> bool:
        """Rows were read, and each is an error."""
        return self.num_read > 0 and sum(error.count for error in self.errors.values()) == self.num_read

    def count_error(self, row: int, error: RowError) -> None:
        """Counts a row that is an error."""
        self.errors.setdefault(error.code, ErrorCount(row, error.message)).count += 1


def read_first_rows(prepared: Prepared) -> FirstRows:
    """Reads the first rows, at most one batch, and makes rows to serve of them."""
    first = FirstRows()
    for rows in prepared.source.read(0, min(prepared.plan.num_rows, BATCH_ROWS), prepared.columns.read):
        start = first.num_read
        keys = [RowKey(prepared.plan.unit(0), start + row) for row in range(rows.batch.num_rows)]
        first.num_read += rows.batch.num_rows
        for row in prepared.parser.rows(rows, keys):
            if isinstance(row, ErrorRow):
                first.count_error(row.row, row.error)
            elif first.row is None:
                try:
                    first.token_ids = _token_ids(prepared, row)
                    first.row = row
                except RowError as error:
                    first.count_error(row.row, error)
    return first


def _token_ids(prepared: Prepared, row: GenerateRow | ScoreRow) -> list[int]:
    def encoded(prompt: Any) -> list[int]:
        return list(prepared.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)

    if not isinstance(row, ScoreRow):
        return encoded(row.prompt) or [0]
    from ..score_requests import scored_context

    prefix = None if row.prefix is None else np.array(encoded(row.prefix), np.int32)
    found: list[int] = scored_context(row, np.array(encoded(row.context), np.int32), prefix).tolist()
    return found


def describe(prepared: Prepared, shard: Shard, first: FirstRows) -> Iterator[str]:
    """Yields lines for a terminal: input, output, the shard's units, the model, the first prompt and bad rows."""
    job, source, columns, plan = prepared.job, prepared.source, prepared.columns, prepared.plan
    yield f"task      {job.task}"
    yield f"input     {_counted(len(source.files), 'file')}, {_counted(source.num_rows, 'row')}"
    yield from (f"          {field.name}: {field.type}" for field in source.schema)
    made = ["input.template"] * (columns.template is not None) + [*columns.roles.values()]
    yield f"prompts   from {', '.join(made)}"
    if columns.scored is not None and columns.answer is not None:
        yield f"answers   from {columns.answer}, as {columns.scored.answer_kind}"
    if prepared.chat is not None:
        yield from prepared.chat.lines()
    if columns.overriding:
        yield f"          sampled as the columns {', '.join(columns.overriding)} say, where they are not null"
    yield f"output    {prepared.folders.output}: {_counted(plan.num_rows, 'row')} in {_counted(plan.num_units, 'part')}"
    yield from (f"          {field.name}: {field.type}" for field in prepared.form.schema(plan.unit(0)))
    if shard.count > 1:
        units = list(shard.units(plan))
        numbers = ", ".join(str(unit.index) for unit in units[:SHOWN_UNITS]) + ", …" * (len(units) > SHOWN_UNITS)
        rows = sum(unit.num_rows for unit in units)
        yield f"shard     {shard}: {_counted(rows, 'row')} in {_counted(len(units), 'part')}: {numbers or 'none'}"
    yield f"state     {prepared.folders.state}"
    if prepared.folders.is_scratch_written:
        yield f"segments  {prepared.folders.scratch}"
    yield f"settings  fingerprint {prepared.document['fingerprint'][:16]}"
    yield f"model     {job.model.path}"
    yield from (f"          {line}" for line in str(prepared.model.memory_plan).splitlines())
    yield from _backends(prepared)
    yield from _first_rows(first)


def _counted(count: int, noun: str) -> str:
    """A number with its noun, such as "1 row" or "2 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _backends(prepared: Prepared) -> Iterator[str]:
    """Yields the backend of each op, with the reasons against the others."""
    for choice in prepared.model.describe()["backends"]:
        where = f" on {choice['on']}" if "on" in choice else ""
        refused = f" ({' · '.join(choice['not_used'])})" if choice["not_used"] else ""
        yield f"op        {choice['op']}: {choice['backend']}{where}{refused}"


def _first_rows(first: FirstRows) -> Iterator[str]:
    """Yields the first prompt that can be served, with its tokens, and the errors of the rows that were read."""
    for code, error in first.errors.items():
        yield f"errors    {error.count:,} of the first {_counted(first.num_read, 'row')}: {code}"
        yield f"          row {error.row}: {error.message}"
    if first.row is None:
        return
    prompt = first.row.context if isinstance(first.row, ScoreRow) else first.row.prompt
    yield f"row {first.row.row}     {_shown(prompt)}"
    ids = first.token_ids
    if isinstance(prompt, str) or ids != list(prompt):
        yield f"          {_counted(len(ids), 'token')}: {ids[:SHOWN_TOKENS]}{' …' * (len(ids) > SHOWN_TOKENS)}"
    if isinstance(first.row, ScoreRow):
        yield from _continuations(first.row)


def _continuations(row: ScoreRow) -> Iterator[str]:
    """Yields what is scored in a row, and which choice is the right one."""
    for index, item in enumerate(row.continuations):
        yield f"          continuation {_shown(item)}{' (the right one)' * (index == row.answer)}"
    if row.chunk_tokens is not None:
        yield f"          in chunks of {row.chunk_tokens:,} tokens"


def _shown(prompt: Any) -> str:
    """A prompt as a Python literal: text, or a list of token ids; the beginning of a very long one."""
    beginning = prompt[:SHOWN_LENGTH]
    text = repr(beginning if isinstance(beginning, str) else list(map(int, beginning)))
    return text if len(beginning) == len(prompt) else f"{text} … ({len(prompt):,} in all)"
