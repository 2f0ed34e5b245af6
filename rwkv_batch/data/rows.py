"""One input row becomes one request, or the reason why it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from ..config import JobConfig, sampling_with
from ..errors import RowError
from ..sampling_params import SamplingParams
from .columns import INTEGERS, Columns
from .table import READ_ERROR

Prompt = str | list[int]


class Encoder(Protocol):
    """The one thing that counting tokens needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Request:
    """A row that the engine can serve: a prompt to complete, or with `continuations` a context to score them after."""

    prompt: Prompt
    params: SamplingParams
    continuations: Sequence[Prompt] = ()


class RowMaker:
    """Makes requests of input rows.

    Args:
        job: its sampling section is what rows override.
        columns: which column plays which part.
        tokenizer: counts tokens for `input.max_prompt_tokens`; None where prompts are token ids.

    Raises:
        ConfigurationError: the template is not valid Jinja.
    """

    def __init__(self, job: JobConfig, columns: Columns, tokenizer: Encoder | None) -> None:
        self._task = job.task
        self._columns = columns
        self._params = job.sampling
        self._max_prompt_tokens = job.input.max_prompt_tokens
        self._tokenizer = tokenizer
        self._template = None
        if columns.template is not None:
            from ..chat import Template

            self._template = Template(columns.template)

    def requests(self, batch: pa.RecordBatch) -> Iterator[Request | RowError]:
        """The rows of a batch, in order."""
        for index in range(batch.num_rows):
            try:
                yield self._request({name: batch[name][index].as_py() for name in batch.schema.names})
            except RowError as error:
                yield error
            except (ValueError, OverflowError) as error:  # from as_py: text that is not UTF-8, a time out of range
                yield RowError("bad_type", f"the row holds a value that cannot be read: {error}")

    def _request(self, record: dict[str, Any]) -> Request:
        if reason := record.pop(READ_ERROR, None):
            code, _, message = reason.partition(": ")
            raise RowError(code, message)
        if self._task == "score":
            context = self._score_text(record, "context") if "context" in self._columns.parts else None
            continuations = self._continuations(record)
            beginning: Prompt = "" if isinstance(continuations[0], str) else []
            request = Request(beginning if context is None else context, self._params, continuations)
        else:
            request = Request(self._prompt(record), self._sampling(record))
        self._check_length(request.prompt)
        return request

    def _prompt(self, record: dict[str, Any]) -> Prompt:
        if self._template is not None:
            return str(self._template.render(record))
        ((part, column),) = self._columns.parts.items()
        value = record[column]
        if value is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        if part == "prompt_token_ids":
            return _ids(column, value)
        if part == "messages":
            from ..chat import render_messages

            return str(render_messages(value))
        return str(value)

    def _score_text(self, record: dict[str, Any], part: str) -> Prompt:
        column = self._columns.parts[part]
        value = record[column]
        if value is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        return value if isinstance(value, str) else _ids(column, value)

    def _continuations(self, record: dict[str, Any]) -> list[Prompt]:
        column = self._columns.parts.get("choices")
        if column is None:
            return [self._score_text(record, "continuation")]
        choices = record[column]
        if choices is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        if not choices:
            raise RowError("no_choices", f"the column {column!r} is empty, expected at least one choice")
        if any(choice is None for choice in choices):
            raise RowError("bad_type", f"the column {column!r} has a null in it")
        return [choice if isinstance(choice, str) else _ids(column, choice) for choice in choices]

    def _sampling(self, record: dict[str, Any]) -> SamplingParams:
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

    def _check_length(self, prompt: Prompt) -> None:
        if self._max_prompt_tokens is None:
            return
        if isinstance(prompt, str):
            assert self._tokenizer is not None, "text without a tokenizer is refused before any row is read"
            prompt = self._tokenizer.encode(prompt)
        if len(prompt) > self._max_prompt_tokens:
            limit = f"input.max_prompt_tokens ({self._max_prompt_tokens})"
            raise RowError("prompt_too_long", f"the prompt has {len(prompt)} tokens, more than {limit}")


def _ids(column: str, value: list[Any]) -> list[int]:
    if any(item is None for item in value):
        raise RowError("bad_type", f"the column {column!r} has a null in it")
    return value


def _plain(field: str, value: Any) -> Any:
    """Arrow's way of holding a sampling value → the value."""
    if field in INTEGERS and isinstance(value, float) and value.is_integer():
        return int(value)  # an integer column with nulls has often become floating on its way here
    if field == "logit_bias":
        pairs = value.items() if isinstance(value, dict) else value
        return {token_id: bias for token_id, bias in pairs if bias is not None}
    return value
