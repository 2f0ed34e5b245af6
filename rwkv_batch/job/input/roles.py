"""The roles of input columns: which JSON kind and which Arrow types a column of each role has.

A role is what a column is for: the prompt, its parts in a score job, or a sampling field that the column overrides.
"""

from __future__ import annotations

import pyarrow.types as pt

from ... import sampling_fields as fields
from ...sampling_params import SAMPLING_FIELDS
from .arrow_types import (
    Check,
    is_ids,
    is_lists_of_ids,
    is_messages,
    is_number,
    is_text,
    is_texts,
    is_utf8,
    is_utf8s,
    or_null,
)
from .json_kinds import (
    BOOLEAN,
    INTEGER,
    JSON_TEXT,
    MESSAGES,
    NUMBER,
    NUMBERS_BY_NAME,
    SCHEMA_TEXT,
    STRING,
    STRINGS,
    Expected,
    JsonKind,
    ListOf,
)

PROMPT_KINDS: dict[str, JsonKind] = {
    "prompt": STRING,
    "messages": MESSAGES,
    "prompt_token_ids": ListOf(INTEGER),
}
"""Where prompts come from → the JSON kind of the column. A generate job has one of these columns, or a template."""

CHAT_KINDS: dict[str, JsonKind] = {"tools": JSON_TEXT, "chat_template_kwargs": JSON_TEXT}
"""What a row may have beside messages → the JSON kind of the column."""

SCORE_KINDS: dict[str, Expected] = {
    "context": (STRING, ListOf(INTEGER)),
    "continuation": (STRING, ListOf(INTEGER)),
    "choices": (ListOf(STRING), ListOf(ListOf(INTEGER))),
    "text": (STRING, ListOf(INTEGER)),
}
"""Parts of a row of a score job → the JSON kinds of the column."""

_TEXT_OR_IDS = Check(lambda kind: is_utf8(kind) or is_ids(kind), "string or list<int>")
CHECKS: dict[str, Check] = {
    "prompt": Check(is_utf8, "string"),
    "messages": Check(is_messages, "list<struct<role: string, content: string>>, or JSON text of it"),
    "prompt_token_ids": Check(is_ids, "list<int>"),
    "context": _TEXT_OR_IDS,
    "continuation": _TEXT_OR_IDS,
    "choices": Check(lambda kind: is_utf8s(kind) or is_lists_of_ids(kind), "list<string> or list<list<int>>"),
    "text": _TEXT_OR_IDS,
    "answer": Check(
        lambda kind: is_number(kind) or is_text(kind), "int or string: the index, letter or text of a choice"
    ),
}
"""Role → the Arrow types of its column."""

_NUMBER = Check(or_null(is_number), "a number")
_STRING = Check(or_null(is_text), "string")
WRITES_LOGPROBS = "output.logprobs is what writes log-probabilities"
_UNUSED = Check(pt.is_null, f"only nulls, as {WRITES_LOGPROBS}, and texts are always written")
_SAMPLING_TYPES: dict[type[fields.Kind], tuple[JsonKind, Check]] = {
    fields.Integer: (INTEGER, _NUMBER),
    fields.Number: (NUMBER, _NUMBER),
    fields.Flag: (BOOLEAN, Check(or_null(pt.is_boolean), "bool")),
    fields.Choice: (STRING, _STRING),
    fields.Text: (STRING, _STRING),
    fields.Schema: (SCHEMA_TEXT, _STRING),
    fields.TokenIds: (ListOf(INTEGER), Check(or_null(is_ids), "list<int>")),
    fields.Strings: (
        STRINGS,
        Check(or_null(lambda kind: is_text(kind) or is_texts(kind)), "string or list<string>"),
    ),
    fields.Biases: (
        NUMBERS_BY_NAME,
        Check(or_null(lambda kind: pt.is_map(kind) or pt.is_struct(kind)), "map<int, float>"),
    ),
}
"""Kind of a sampling field → the JSON kind and the Arrow types of a column that overrides it."""

SAMPLING_KINDS: dict[str, JsonKind] = {
    name: _SAMPLING_TYPES[type(field.kind)][0] for name, field in SAMPLING_FIELDS.items() if field.in_jobs
}
"""Sampling field → the JSON kind of a column that overrides it."""

SAMPLING_CHECKS: dict[str, Check] = {
    name: _SAMPLING_TYPES[type(field.kind)][1] if field.in_jobs else _UNUSED for name, field in SAMPLING_FIELDS.items()
}
"""Sampling field → the Arrow types of a column that overrides it."""
