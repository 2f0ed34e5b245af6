"""From values of a row to the row to score: context, continuations, and the right choice."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import RowError
from ...rows import ScoreRow
from ...text.messages import utf8
from ..config import JobConfig
from .answers import LETTERS, right_choice
from .cells import Record
from .columns import Columns
from .score_columns import Scored

if TYPE_CHECKING:
    from .rendering import Renderer

PROMPT: Any = object()
"""The key of a rendered prompt, or context, in a record. It is no text, and so not the name of a column."""
_SCORED: Any = object()
"""The key of the rendered continuations in a record."""


class ScoreRows:
    """Makes rows to score of records.

    Args:
        job: the job, with its score section.
        columns: which column has which role.
        scored: what is scored in each row.
    """

    def __init__(self, job: JobConfig, columns: Columns, scored: Scored) -> None:
        self._score = job.score
        self._columns = columns
        self._scored = scored
        self._renderer = renderer_of(scored.template, scored.template_setting)

    @property
    def has_template(self) -> bool:
        """Whether a template makes what is scored."""
        return self._renderer is not None

    def render(self, readable: Sequence[Record], values: Sequence[Record]) -> None:
        """Puts what the template makes of each record, or its error, into the record; nothing without a template.

        Args:
            readable: the records.
            values: the same records as the template sees them.
        """
        if self._renderer is None:
            return
        named = [self._names(record, seen) for record, seen in zip(readable, values, strict=True)]
        texts = iter(self._renderer.render([names for of_row in named for names in of_row]))
        for record, of_row in zip(readable, named, strict=True):
            found = list(islice(texts, len(of_row)))
            record[_SCORED] = next((text for text in found if isinstance(text, RowError)), found)

    def _names(self, record: Record, seen: Record) -> list[Record]:
        """The names of the template for each text that it makes of a row; none for a row without good choices."""
        if self._scored.kind != "choices":
            return [seen]
        try:
            choices = self._choices(record)
        except RowError:
            return []
        letters = ({"letter": letter} for letter in LETTERS)
        return [{**seen, "choice": choice, "index": index, **next(letters, {})} for index, choice in enumerate(choices)]

    def row(self, key: Hashable, number: int, record: Record) -> ScoreRow:
        """Makes the row to score of a record.

        Raises:
            RowError: a value is null, or is not what its column should hold.
        """
        context = self._context(record)
        choices = self._choices(record) if self._scored.kind == "choices" else None
        if self.has_template:
            continuations = rendered(record, _SCORED)
        else:
            continuations = [self._single(record)] if choices is None else choices
        if context is None:
            context = "" if isinstance(continuations[0], str) else []
        return ScoreRow(
            key,
            number,
            context,
            continuations,
            self._score.add_bos_token,
            prefix=self._score.prefix,
            chunk_tokens=self._score.chunk_tokens,
            answer=None if choices is None else self._answer(record, choices),
        )

    def _context(self, record: Record) -> Any:
        """The context of a row; None where the job has none."""
        if self._columns.template is not None:
            return rendered(record, PROMPT)
        return self._text_or_ids(record, "context") if "context" in self._columns.roles else None

    def _single(self, record: Record) -> Any:
        return self._text_or_ids(record, "text" if "text" in self._columns.roles else "continuation")

    def _text_or_ids(self, record: Record, part: str) -> Any:
        column = self._columns.roles[part]
        value = record[column]
        if value is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        return value if isinstance(value := text_in(column, value), str) else ids_in(column, value)

    def _choices(self, record: Record) -> list[Any]:
        if self._scored.choices is not None:
            return list(self._scored.choices)
        column = self._columns.roles["choices"]
        choices = record[column]
        if choices is None:
            raise RowError("null_prompt", f"the column {column!r} is null")
        if not len(choices):
            raise RowError("no_choices", f"the column {column!r} is empty, expected at least one choice")
        if any(choice is None for choice in choices):
            raise RowError("bad_type", f"the column {column!r} has a null in it")
        texts = [text_in(column, choice) for choice in choices]
        return [choice if isinstance(choice, str) else ids_in(column, choice) for choice in texts]

    def _answer(self, record: Record, choices: Sequence[Any]) -> int | None:
        """The index of the right choice; None where it is not known."""
        column = self._columns.answer
        if column is None or record[column] is None:
            return None
        answer = json.loads(record[column]) if column in self._columns.json_text else record[column]
        assert self._scored.answer_kind is not None
        return None if answer is None else right_choice(column, answer, self._scored.answer_kind, choices)


def renderer_of(template: str | None, setting: str) -> Renderer | None:
    """The renderer of a template; None where there is none."""
    if template is None:
        return None
    from .rendering import Renderer

    return Renderer(template, setting)


def rendered(record: Record, key: Any) -> Any:
    """What a template has made of a record. Raises RowError where it has failed."""
    found = record[key]
    if isinstance(found, RowError):
        raise found
    return found


def text_in(column: str, value: Any) -> Any:
    """The text that bytes hold in UTF-8, and any other value itself."""
    return utf8(value, f"the column {column!r}") if isinstance(value, bytes) else value


def ids_in(column: str, value: Any) -> Any:
    """Token ids of a column. Raises RowError for a null among them."""
    if not isinstance(value, np.ndarray) and any(item is None for item in value):
        raise RowError("bad_type", f"the column {column!r} has a null in it")
    return value
