"""Binding of a score job: what is scored after which context, and where the answers come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.types as pt

from ...errors import ConfigurationError
from ..config import JobConfig
from ..messages import listed
from .answers import Answered, AnswerKind, kind_of_answers
from .arrow_types import is_lists_of_ids, is_text
from .reader import Input
from .roles import CHECKS
from .table import BATCH_ROWS

CHOICE_NAMES = ("choice", "letter", "index")
"""Names of `score.choice_template` besides the columns."""


@dataclass(frozen=True)
class Scored:
    """What a score job scores in each row.

    Args:
        kind: one continuation of the context; each of several choices; or a whole document, which has no context.
        choices: the choices of all rows; None where a column has them, or where there are none.
        template: source of the template that makes the continuation, or the text to score of each choice.
        answer_kind: what the column with the role answer holds; None where there is none.
        has_texts: what is scored is text, and not token ids.
        recorded_answer: what job.json records for `score.answer`: `answer_kind` of a column of texts, else "auto", as
            for jobs of versions without this setting.
    """

    kind: Literal["continuation", "choices", "document"]
    choices: tuple[str, ...] | None = None
    template: str | None = None
    answer_kind: AnswerKind | None = None
    has_texts: bool = True
    recorded_answer: str = "auto"

    @property
    def template_setting(self) -> str:
        """The setting that `template` comes from."""
        return f"score.{'choice' if self.kind == 'choices' else 'continuation'}_template"


def score_roles(job: JobConfig, given: Mapping[str, str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Finds the columns of the context, and of what is scored after it.

    Args:
        given: role → its column, for all roles that have one.
        names: all columns of the input.

    Returns:
        Role → column, for the roles context, continuation, choices and text; and what is wrong with them.
    """
    score, named = job.score, job.input.columns
    made = [name for name in ("choices", "continuation_template") if getattr(score, name) is not None]
    columns = [] if made else [role for role in ("continuation", "choices") if role in given]
    is_named = named.get("text") is not None
    has_context = "context" in given or job.input.template is not None
    problems = []
    for role in ("continuation", "choices", "text"):
        if made and named.get(role) is not None:
            problems.append(f"score.{made[0]}: got a value beside input.columns.{role}, expected one of them")
    if is_named and (job.input.template is not None or named.get("context") or named.get("continuation")):
        problems.append("input.columns.text: got a column beside a context, expected one of them: text is a document")
    if len(made) > 1:
        problems.append("score.choices: got choices beside score.continuation_template, expected one of them")
    if is_named or ("text" in given and not (made or columns or has_context)):
        return {"text": given["text"]} if "text" in given else {}, problems
    wants_none = "context" in named and named["context"] is None and job.input.template is None
    if len(made or columns) != 1 or not (has_context or (wants_none and columns == ["continuation"])):
        problems.append(
            "input.columns: task score needs the column context, and either continuation or choices "
            "(context: null scores continuations as whole documents), or the column text, a whole document; "
            f"the input has {listed(names)}"
        )
        return {}, problems
    context = [] if job.input.template is not None else ["context"]
    return {role: given[role] for role in (*context, *columns) if role in given}, problems


def check_score(job: JobConfig, kind: str, names: Sequence[str]) -> Iterator[str]:
    """Yields what is wrong with settings of the score section for this kind of rows.

    Args:
        kind: as in `Scored`.
        names: all columns of the input.
    """
    score = job.score
    if score.choice_template is not None and kind != "choices":
        yield "score.choice_template: got a template, expected null: the job has no choices"
    if score.chunk_tokens is not None and kind != "document":
        yield (
            f"score.chunk_tokens: got {score.chunk_tokens}, expected null: it is for whole documents (the column text)"
        )
    if score.answer != "auto" and kind != "choices":
        yield f"score.answer: got {score.answer}, expected auto: the job has no choices"
    if score.prefix is not None and job.model.tokenizer is None:
        yield "score.prefix: got text, expected null: model.tokenizer is null, which serves token ids only"
    if score.group_by is not None and score.group_by not in names:
        yield f"score.group_by: the input has no column {score.group_by!r}; it has {listed(names)}"


def kind_of_rows(job: JobConfig, roles: Mapping[str, str]) -> Literal["continuation", "choices", "document"]:
    """What is scored in each row of a job with these roles."""
    if job.score.choices is not None or "choices" in roles:
        return "choices"
    if job.score.continuation_template is not None or job.input.template is not None or "context" in roles:
        return "continuation"
    return "document"


def are_ids(schema: pa.Schema, roles: Mapping[str, str]) -> bool:
    """Whether the choices are token ids."""
    return "choices" in roles and is_lists_of_ids(schema.field(roles["choices"]).type)


def answer_problem(job: JobConfig, field: pa.Field, has_ids: bool) -> str | None:
    """Returns what is wrong with the type of the column with the answers; None where nothing is."""
    where = "input.columns.answer"
    kind, asked = field.type, job.score.answer
    if not CHECKS["answer"].accepts(kind):
        expected = f"{CHECKS['answer'].expected} (or set it to null in input.columns)"
        return f"{where}: column {field.name!r} is {kind}, expected {expected}"
    if asked in ("letter", "text") and not is_text(kind):
        return f"score.answer: got {asked}, expected index: the column {field.name!r} is {kind}"
    if asked == "text" and has_ids:
        return "score.answer: got text, expected index or letter: the choices are token ids"
    return None


def without_late_answers(job: JobConfig, schema: pa.Schema) -> JobConfig:
    """The job without a column answer that earlier versions did not take for one: no integers, and not named."""
    is_late = "answer" in schema.names and not pt.is_integer(schema.field("answer").type)
    if job.task != "score" or "answer" in job.input.columns or not is_late:
        return job
    columns = {**job.input.columns, "answer": None}
    return job.model_copy(update={"input": job.input.model_copy(update={"columns": columns})})


def with_answers(scored: Scored, job: JobConfig, source: Input, answer: str, choices: str | None) -> Scored:
    """Returns what is scored with what the column with the answers holds.

    Args:
        answer: the column.
        choices: the column with the choices; None where all rows have those of `score.choices`.

    Raises:
        ConfigurationError: what the column holds cannot be found.
    """
    if not is_text(source.schema.field(answer).type):
        return replace(scored, answer_kind="index")
    kind = job.score.answer if job.score.answer != "auto" else _kind_of_texts(job, source, answer, choices)
    return replace(scored, answer_kind=kind, recorded_answer=kind)


def _kind_of_texts(job: JobConfig, source: Input, answer: str, choices: str | None) -> AnswerKind:
    known = [*_first_answers(source, answer, choices, job.score.choices)]
    if known:
        return kind_of_answers(answer, known)
    if source.num_rows <= BATCH_ROWS or answer in source.json_text:
        return "index"
    raise ConfigurationError(
        f"input.columns.answer: the column {answer!r} has no answer in the first {BATCH_ROWS} rows; set score.answer "
        "to index, letter or text (or set the column to null in input.columns)"
    )


def _first_answers(
    source: Input, answer: str, choices: str | None, constant: Sequence[str] | None
) -> Iterator[Answered]:
    """Yields the first rows that have choices, and an answer that is text."""
    names = [answer] if choices is None else [answer, choices]
    first = 0
    for rows in source.read(0, min(source.num_rows, BATCH_ROWS), names):
        answers = rows.batch[answer].cast(pa.string()).to_pylist()
        lists: list[Any] = [constant] * len(answers) if choices is None else rows.batch[choices].to_pylist()
        for index, (text, found) in enumerate(zip(answers, lists, strict=True)):
            value = json.loads(text) if text is not None and answer in source.json_text else text
            if isinstance(value, str) and found and index not in rows.errors:
                yield Answered(first + index, value, [_decoded(choice) for choice in found])
        first += rows.batch.num_rows


def _decoded(choice: Any) -> Any:
    return choice.decode(errors="replace") if isinstance(choice, bytes) else choice
