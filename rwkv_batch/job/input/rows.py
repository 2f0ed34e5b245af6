"""From batches of input rows to rows to serve, or to error rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from ...errors import RowError
from ...rows import ErrorRow, GenerateRow, ScoreRow
from ...sampling_fields import Biases, Integer
from ...sampling_params import SAMPLING_FIELDS, SamplingParams, sampling_error
from ..chat import JobChat
from ..config import JobConfig, sampling_with
from ..plan import Unit
from .cells import Record, records
from .columns import Columns
from .conversations import Conversations
from .score_rows import PROMPT, ScoreRows, ids_in, rendered, renderer_of, text_in
from .table import Rows


class RowKey(NamedTuple):
    """The key of a row: its unit, and its number in the whole input."""

    unit: Unit
    row: int


class RowParser:
    """Makes rows to serve of a job's input.

    Args:
        job: the job, whose sampling section a row may override.
        columns: which column has which role.
        chat: how conversations become prompts; None where there are none.
    """

    def __init__(self, job: JobConfig, columns: Columns, chat: JobChat | None = None) -> None:
        self._columns = columns
        self._params = job.sampling
        self._score_rows = None if columns.scored is None else ScoreRows(job, columns, columns.scored)
        self._has_sampling = bool(columns.sampling) or columns.sampling_struct is not None
        self._renderer = renderer_of(columns.template, "input.template")
        self._conversations = None if chat is None else Conversations(chat, columns.chat)

    def rows(self, source: Rows, keys: Sequence[RowKey]) -> list[GenerateRow | ScoreRow | ErrorRow]:
        """Returns rows to serve, in order, each with the key in its place."""
        read = enumerate(self._records(source.batch))
        found = [
            self._row(key, source.errors.get(index, record)) for key, (index, record) in zip(keys, read, strict=True)
        ]
        return found if self._conversations is None else self._conversations.rendered(found)

    def _row(self, key: RowKey, record: Record | RowError) -> GenerateRow | ScoreRow | ErrorRow:
        if isinstance(record, RowError):
            return ErrorRow(key, key.row, record)
        try:
            if self._score_rows is not None:
                return self._score_rows.row(key, key.row, record)
            return GenerateRow(key, key.row, self._prompt(record), self._sampling(record))
        except RowError as error:
            return ErrorRow(key, key.row, error)

    def _records(self, batch: pa.RecordBatch) -> Iterable[Record | RowError]:
        """Returns each row's values. They include what templates make of them, or the error, under keys of objects."""
        scorer = self._score_rows
        if self._renderer is None and (scorer is None or not scorer.has_template):
            return records(batch, frozenset(self._columns.roles.values()))
        found = list(records(batch, frozenset()))
        readable = [record for record in found if not isinstance(record, RowError)]
        values = [self._parsed(record) for record in readable]
        if self._renderer is not None:
            for record, prompt in zip(readable, self._renderer.render(values), strict=True):
                record[PROMPT] = prompt
        if scorer is not None:
            scorer.render(readable, values)
        return found

    def _parsed(self, record: Record) -> Record:
        """The values for a template: those that a column holds as JSON text are parsed."""
        texts = {name: record[name] for name in self._columns.json_text}
        return {**record, **{name: json.loads(text) for name, text in texts.items() if text is not None}}

    def _prompt(self, record: Record) -> Any:
        if self._renderer is not None:
            return rendered(record, PROMPT)
        given = {part: column for part, column in self._columns.roles.items() if record[column] is not None}
        if len(given) != 1:
            names = " and ".join(map(repr, self._columns.roles.values()))
            if given:
                raise RowError("bad_type", f"the row has several prompts, expected one in the columns {names}")
            are_null = f"column {names} is" if len(self._columns.roles) == 1 else f"columns {names} are"
            raise RowError("null_prompt", f"the {are_null} null")
        ((part, column),) = given.items()
        value = record[column]
        if part == "prompt_token_ids":
            return ids_in(column, value)
        if part == "messages" and self._conversations is not None:
            return self._conversations.of(value, record)
        return text_in(column, value)

    def _sampling(self, record: Record) -> SamplingParams:
        if not self._has_sampling:
            return self._params
        values = {field: record[column] for field, column in self._columns.sampling.items()}
        if self._columns.sampling_struct is not None:
            values |= record[self._columns.sampling_struct] or {}
        given = {field: _plain(field, value) for field, value in values.items() if value is not None}
        if not given:
            return self._params
        try:
            return sampling_with(self._params, given)
        except ValueError as error:
            raise sampling_error(error) from error


def _plain(field: str, value: Any) -> Any:
    """The Python value of a sampling field that Arrow holds in another form."""
    kind = SAMPLING_FIELDS[field].kind
    if isinstance(kind, Integer) and isinstance(value, float) and value.is_integer():
        return int(value)  # an integer column with nulls has often become floating on its way here
    if isinstance(kind, Biases):
        pairs = value.items() if isinstance(value, dict) else value
        return {token_id: bias for token_id, bias in pairs if bias is not None}
    return value
