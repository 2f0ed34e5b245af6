"""The section `score` of a job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .section import Section, setting


class ScoreSection(Section):
    """Settings of task score: what the model reads before a continuation, what is scored, and which choice is right."""

    add_bos_token: bool = setting(False, "Put token 0 before every context, as evaluation harnesses do for RWKV.")
    prefix: str | None = setting(
        None,
        'Text in front of every context, encoded by itself, such as `"\\n"` in the evaluation of ChatRWKV. With '
        "`add_bos_token`, token 0 comes before it.",
        "text, or null",
    )
    chunk_tokens: Annotated[int, Field(ge=2)] | None = setting(
        None,
        "Score whole documents in chunks of this many tokens, each from a fresh state after token 0 (`add_bos_token`) "
        "and the prefix. With neither, the first token of a chunk is not scored. null: a document is scored as a "
        "whole, after token 0 or the prefix.",
        "an integer from 2, or null",
    )
    choices: Annotated[list[str], Field(min_length=1)] | None = setting(
        None,
        'Choices that all rows have, such as `[" yes", " no"]`, in place of a column `choices`.',
        "a list of texts, or null",
    )
    choice_template: str | None = setting(
        None,
        'A Jinja template that makes the text to score of a choice, such as `" {{ letter }}"`. Its names are `choice`, '
        "`letter` (A to Z), `index` (from 0) and the row's columns. null: the choice itself.",
        "a Jinja template, a file that holds one, or null",
    )
    continuation_template: str | None = setting(
        None,
        "A Jinja template that makes the continuation from the row's columns, in place of a column `continuation`.",
        "a Jinja template, a file that holds one, or null",
    )
    answer: Literal["auto", "index", "letter", "text"] = setting(
        "auto",
        "What the column `answer` holds: the index of the right choice, from 0; its letter; or its text. `auto` finds "
        "it by the type of the column and by the first rows.",
    )
    group_by: str | None = setting(
        None,
        "A column, such as `subject`: the report also has the scores of the rows of each of its values. Output rows "
        "always repeat the column.",
        "the name of a column, or null",
    )
