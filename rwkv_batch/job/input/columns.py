"""Which input column plays which part in a job, settled from the schema alone, before any row is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from ...errors import ConfigurationError
from ...sampling_params import SamplingParams
from ..config import JobConfig
from .jsonl import Kind
from .openai_batch import PROMPT_KINDS

PROMPT_PARTS = tuple(PROMPT_KINDS)
SCORE_PARTS = ("context", "continuation", "choices", "answer")

INTEGERS = ("n", "top_k", "max_tokens", "min_tokens", "seed")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "penalty_decay",
)
FLAGS = ("ignore_eos", "include_stop_str_in_output")
CONSTRAINTS = ("json_schema", "regex", "grammar")
TEXTS = ("top_p_order", *CONSTRAINTS)
TOKEN_IDS = ("stop_token_ids", "allowed_token_ids", "bad_token_ids")
UNWRITTEN = ("logprobs", "prompt_logprobs")

SAMPLING_KINDS: dict[str, Kind] = {
    **dict.fromkeys(INTEGERS, "int"),
    **dict.fromkeys(NUMBERS, "float"),
    **dict.fromkeys(FLAGS, "bool"),
    **dict.fromkeys(TEXTS, "string"),
    **{name: ["int"] for name in TOKEN_IDS},
    "stop": "strings",
    "logit_bias": "biases",
}

Check = tuple[Callable[[pa.DataType], bool], str]
"""Whether a column's type will do, and how to say what would."""


@dataclass(frozen=True)
class Columns:
    """The roles of the input's columns.

    Args:
        roles: prompt, messages, prompt_token_ids, context, continuation or choices → its column.
        sampling: sampling field → the column that overrides it.
        sampling_struct: the column whose fields override sampling fields, if there is one.
        answer: the column with the index of the right choice, for the report's accuracy, if there is one.
        template: source of the Jinja template that makes the prompt, if there is one.
        passed: columns that the output repeats.
        read: columns that making requests needs.
    """

    roles: dict[str, str]
    sampling: dict[str, str]
    sampling_struct: str | None
    answer: str | None
    template: str | None
    passed: tuple[str, ...]
    read: tuple[str, ...]


def expected_kinds(job: JobConfig) -> dict[str, Kind]:
    """For JSON Lines: what must be in the columns whose bad cells spoil their row only; a tuple means one of these."""
    if job.task == "score":
        text_or_ids = ("string", ["int"])
        kinds: dict[str, Kind] = {
            "context": text_or_ids,
            "continuation": text_or_ids,
            "choices": (["string"], [["int"]]),
        }
    else:
        kinds = {**SAMPLING_KINDS, "sampling": SAMPLING_KINDS}
        if job.input.template is None:
            kinds |= {part: PROMPT_KINDS[part] for part in _named_prompts(job) or PROMPT_PARTS}
    named = {part: job.input.columns.get(part, part) for part in kinds}
    return {name: kinds[part] for part, name in named.items() if name is not None}


def bind_columns(job: JobConfig, schema: pa.Schema) -> Columns:
    """Find the columns that the job needs.

    Raises:
        ConfigurationError: a column is missing, ambiguous or of the wrong type; one line for each problem.
    """
    problems: list[str] = []
    given = _given_columns(job, schema, problems)
    template = _template_source(job.input.template)
    is_score = job.task == "score"
    parts = _score_parts(job, given, problems) if is_score else _prompt_parts(job, given, template, problems)
    answer = _answer(job, schema, given, problems) if "choices" in parts else None
    for part, name in parts.items():
        _check_type(schema, name, _PARTS[part], f"input.columns.{part}", problems)
    sampling, struct = ({}, None) if job.task == "score" else _sampling_columns(schema, given, problems)
    if job.model.tokenizer is None and (
        template or not all(_is_token_ids(schema.field(name).type) for name in parts.values())
    ):
        problems.append(
            "model.tokenizer: got null, which serves token ids only; expected a tokenizer, because prompts are text"
        )
    passed = _passed_columns(job, schema, problems)
    if problems:
        raise ConfigurationError("\n".join(problems))
    needed = {*parts.values(), *sampling.values(), *([struct] if struct else [])}
    read = schema.names if template is not None else [name for name in schema.names if name in needed]
    return Columns(parts, sampling, struct, answer, template, tuple(passed), tuple(read))


def _given_columns(job: JobConfig, schema: pa.Schema, problems: list[str]) -> dict[str, str]:
    """Part → column for every part that has one: named in `input.columns`, else a column of the part's own name."""
    known = (*PROMPT_PARTS, *SCORE_PARTS, "id", "sampling", *SamplingParams.field_names())
    given = {part: part for part in known if part in schema.names}
    for part, name in job.input.columns.items():
        if part not in known:
            problems.append(f"input.columns.{part}: unknown part{_did_you_mean(part, known)}")
        elif name is None:
            given.pop(part, None)
        elif name not in schema.names:
            hint = _did_you_mean(name, schema.names) or f"; the input has {', '.join(schema.names)}"
            problems.append(f"input.columns.{part}: the input has no column {name!r}{hint}")
        else:
            given[part] = name
    return given


def _prompt_parts(job: JobConfig, given: dict[str, str], template: str | None, problems: list[str]) -> dict[str, str]:
    """The one column that prompts come from; none where a template makes them."""
    if template is not None:
        return {}
    present = _named_prompts(job) or [part for part in PROMPT_PARTS if part in given]
    if len(present) != 1:
        found = f"found {' and '.join(present)}" if present else "found none of them"
        problems.append(
            f"input.columns: {found}, expected exactly one of the columns prompt, messages, prompt_token_ids "
            "(name it, for example columns: {prompt: question})"
        )
    return {part: given[part] for part in present if part in given}


def _named_prompts(job: JobConfig) -> list[str]:
    return [part for part in PROMPT_PARTS if job.input.columns.get(part) is not None]


def _score_parts(job: JobConfig, given: dict[str, str], problems: list[str]) -> dict[str, str]:
    """Context and what is scored after it; with `context: null` continuations are whole documents."""
    endings = [part for part in ("continuation", "choices") if part in given]
    wants_none = "context" in job.input.columns and job.input.columns["context"] is None
    if len(endings) != 1 or ("context" not in given and not (wants_none and endings == ["continuation"])):
        problems.append(
            "input.columns: task score needs the column context, and either continuation or choices "
            "(context: null scores continuations as whole documents)"
        )
        return {}
    return {part: given[part] for part in ("context", *endings) if part in given}


def _answer(job: JobConfig, schema: pa.Schema, given: dict[str, str], problems: list[str]) -> str | None:
    """A column that only happens to be called answer must hold integers to be one."""
    name = given.get("answer")
    if name is None or pt.is_integer(schema.field(name).type):
        return name
    if "answer" in job.input.columns:
        _check_type(
            schema, name, (pt.is_integer, "int, the index of the right choice"), "input.columns.answer", problems
        )
    return None


def _sampling_columns(
    schema: pa.Schema, given: dict[str, str], problems: list[str]
) -> tuple[dict[str, str], str | None]:
    fields = SamplingParams.field_names()
    sampling = {field: given[field] for field in fields if field in given}
    for field, name in sampling.items():
        _check_type(schema, name, SAMPLING_CHECKS[field], f"input.columns.{field}", problems)
    struct = given.get("sampling")
    if struct is None:
        return sampling, None
    kind = schema.field(struct).type
    if pt.is_null(kind):
        return sampling, struct
    if not pt.is_struct(kind):
        problems.append(f"input.columns.sampling: column {struct!r} is {kind}, expected a struct of sampling fields")
        return sampling, None
    inner = pa.schema(list(kind))
    for name in inner.names:
        if name not in fields:
            problems.append(
                f"input.columns.sampling: {struct}.{name} is no sampling field{_did_you_mean(name, fields)}"
            )
        elif name in sampling:
            problems.append(f"input.columns.sampling: {name} is a column and in {struct!r} too, expected one of them")
        else:
            _check_type(inner, name, SAMPLING_CHECKS[name], f"input.columns.sampling: {struct}", problems)
    return sampling, struct


def _passed_columns(job: JobConfig, schema: pa.Schema, problems: list[str]) -> list[str]:
    wanted = job.output.input_columns
    if isinstance(wanted, str):
        return list(schema.names) if wanted == "all" else []
    for name in wanted:
        if name not in schema.names:
            problems.append(
                f"output.input_columns: the input has no column {name!r}{_did_you_mean(name, schema.names)}"
            )
    return [name for name in schema.names if name in wanted]


def _template_source(template: str | None) -> str | None:
    """`input.template` itself where it looks like Jinja, else what the file of that name holds."""
    if template is None or "{{" in template or "{%" in template:
        return template
    if not os.path.isfile(template):
        raise ConfigurationError(f"input.template: got {template!r}, expected a Jinja template or an existing file")
    with open(template, encoding="utf-8") as file:
        return file.read()


def _check_type(schema: pa.Schema, name: str, check: Check, where: str, problems: list[str]) -> None:
    kind = schema.field(name).type
    is_right, expected = check
    if not is_right(kind):
        problems.append(f"{where}: column {name!r} is {kind}, expected {expected} (or set it to null in input.columns)")


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    return pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)


def _is_list(kind: pa.DataType, is_item: Callable[[pa.DataType], bool]) -> bool:
    is_any_list = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind) or pt.is_list_view(kind)
    return is_any_list and (pt.is_null(kind.value_type) or is_item(kind.value_type))


def _is_messages(kind: pa.DataType) -> bool:
    def is_message(item: pa.DataType) -> bool:
        fields = {field.name: field.type for field in item} if pt.is_struct(item) else {}
        return all(name in fields and _is_text(fields[name]) for name in ("role", "content"))

    return _is_list(kind, is_message)


def _is_ids(kind: pa.DataType) -> bool:
    return _is_list(kind, pt.is_integer)


def _is_token_ids(kind: pa.DataType) -> bool:
    return _is_ids(kind) or _is_list(kind, _is_ids)


def _is_texts(kind: pa.DataType) -> bool:
    return _is_list(kind, _is_text)


_PARTS: dict[str, Check] = {
    "prompt": (_is_text, "string"),
    "messages": (_is_messages, "list<struct<role: string, content: string>>"),
    "prompt_token_ids": (_is_ids, "list<int>"),
    "context": (lambda kind: _is_text(kind) or _is_ids(kind), "string or list<int>"),
    "continuation": (lambda kind: _is_text(kind) or _is_ids(kind), "string or list<int>"),
    "choices": (lambda kind: _is_texts(kind) or _is_list(kind, _is_ids), "list<string> or list<list<int>>"),
}


def _or_null(check: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: pt.is_null(kind) or check(_value_type(kind))


def _sampling_checks() -> Iterator[tuple[str, Check]]:
    def is_number(kind: pa.DataType) -> bool:
        return pt.is_integer(kind) or pt.is_floating(kind)

    for name in (*INTEGERS, *NUMBERS):
        yield name, (_or_null(is_number), "a number")
    for name in FLAGS:
        yield name, (_or_null(pt.is_boolean), "bool")
    for name in TEXTS:
        yield name, (_or_null(_is_text), "string")
    for name in TOKEN_IDS:
        yield name, (_or_null(_is_ids), "list<int>")
    for name in UNWRITTEN:
        yield name, (pt.is_null, "only nulls, as output.logprobs is what writes log-probabilities")
    yield "stop", (_or_null(lambda kind: _is_text(kind) or _is_texts(kind)), "string or list<string>")
    yield "logit_bias", (_or_null(lambda kind: pt.is_map(kind) or pt.is_struct(kind)), "map<int, float>")


SAMPLING_CHECKS: dict[str, Check] = dict(_sampling_checks())
