"""From batches of input rows to rows to serve, or to error rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...errors import RowError
from ...rows import ErrorRow, GenerateRow, ScoreRow
from ...sampling_fields import Biases, Integer
from ...sampling_params import SAMPLING_FIELDS, SamplingParams
from ...text.messages import utf8
from ..chat import JobChat
from ..config import JobConfig, sampling_with
from ..plan import Unit
from .cells import Record, records
from .columns import Columns
from .conversations import Conversations
from .table import Rows

_PROMPT: Any = object()
"""The key of a rendered prompt in a record. It is no text, and so not the name of a column."""


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
        self._add_bos_token = job.score.add_bos_token
        self._parse = self._score_row if job.task == "score" else self._generate_row
        self._has_sampling = bool(columns.sampling) or columns.sampling_struct is not None
        self._conversations = None if chat is None else Conversations(chat, columns.chat)
        self._renderer = None
        if columns.template is not None:
            from .rendering import Renderer

            self._renderer = Renderer(columns.template)

    def rows(self, source: Rows, keys: Sequence[RowKey]) -> list[GenerateRow | ScoreRow | ErrorRow]:
        """Returns rows to serve, in order, each with the key in its place."""
        records = enumerate(self._records(source.batch))
        found = [
            self._row(key, source.errors.get(index, record)) for key, (index, record) in zip(keys, records, strict=True)
        ]
        return found if self._conversations is None else self._conversations.rendered(found)

    def _row(self, key: RowKey, record: Record | RowError) -> GenerateRow | ScoreRow | ErrorRow:
        if isinstance(record, RowError):
            return ErrorRow(key, key.row, record)
        try:
            return self._parse(key, record)
        except RowError as error:
            return ErrorRow(key, key.row, error)

    def _records(self, batch: pa.RecordBatch) -> Iterable[Record | RowError]:
        """Returns each row's values. With a template they include the prompt, or its error, under the key _PROMPT."""
        if self._renderer is None:
            return self._cells(batch)
        found = list(self._cells(batch))
        readable = [record for record in found if not isinstance(record, RowError)]
        prompts = self._renderer.render([self._parsed(record) for record in readable])
        for record, prompt in zip(readable, prompts, strict=True):
            record[_PROMPT] = prompt
        return found

    def _parsed(self, record: Record) -> Record:
        """The values for a template: those that a column holds as JSON text are parsed."""
        texts = {name: record[name] for name in self._columns.json_text}
        return {**record, **{name: json.loads(text) for name, text in texts.items() if text is not None}}

    def _cells(self, batch: pa.RecordBatch) -> Iterator[Record | RowError]:
        return records(batch, frozenset() if self._renderer else frozenset(self._columns.roles.values()))

    def _generate_row(self, key: RowKey, record: Record) -> GenerateRow:
        return GenerateRow(key, key.row, self._prompt(record), self._sampling(record))

    def _score_row(self, key: RowKey, record: Record) -> ScoreRow:
        context = self._text_or_ids(record, "context") if "context" in self._columns.roles else None
        continuations = self._continuations(record)
        if context is None:
            context = "" if isinstance(continuations[0], str) else []
        return ScoreRow(key, key.row, context, continuations, self._add_bos_token)

    def _prompt(self, record: Record) -> Any:
        if self._renderer is not None:
            prompt = record[_PROMPT]
            if isinstance(prompt, RowError):
                raise prompt
            return prompt
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
            return _ids(column, value)
        if part == "messages" and self._conversations is not None:
            return self._conversations.of(value, record)
        return _text(column, value)

    def _text_or_ids(self, record: Record, part: str) -> Any:
        column = self._columns.roles[part]
        value = record[column]
        if value is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        return value if isinstance(value := _text(column, value), str) else _ids(column, value)

    def _continuations(self, record: Record) -> list[Any]:
        column = self._columns.roles.get("choices")
        if column is None:
            return [self._text_or_ids(record, "continuation")]
        choices = record[column]
        if choices is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        if not choices:
            raise RowError("no_choices", f"the column {column!r} is empty, expected at least one choice")
        if any(choice is None for choice in choices):
            raise RowError("bad_type", f"the column {column!r} has a null in it")
        texts = [_text(column, choice) for choice in choices]
        return [choice if isinstance(choice, str) else _ids(column, choice) for choice in texts]

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
            raise RowError("bad_sampling", str(error).removeprefix("SamplingParams.")) from error


def _text(column: str, value: Any) -> Any:
    """The text that bytes hold in UTF-8, and any other value itself."""
    return utf8(value, f"the column {column!r}") if isinstance(value, bytes) else value


def _ids(column: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray) and any(item is None for item in value):
        raise RowError("bad_type", f"the column {column!r} has a null in it")
    return value


def _plain(field: str, value: Any) -> Any:
    """The Python value of a sampling field that Arrow holds in another form."""
    kind = SAMPLING_FIELDS[field].kind
    if isinstance(kind, Integer) and isinstance(value, float) and value.is_integer():
        return int(value)  # an integer column with nulls has often become floating on its way here
    if isinstance(kind, Biases):
        pairs = value.items() if isinstance(value, dict) else value
        return {token_id: bias for token_id, bias in pairs if bias is not None}
    return value
