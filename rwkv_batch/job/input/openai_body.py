"""The body of a request in OpenAI's batch format, with vLLM's additional fields, as prompt and sampling fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from ...errors import RowError
from ...sampling_params import SAMPLING_FIELDS
from ...structured_outputs import grammar_of_choice, is_texts
from .json_kinds import shown_json

SAMPLING_NAMES = {
    alias: name
    for name, field in SAMPLING_FIELDS.items()
    if field.in_jobs
    for alias in dict.fromkeys((name, *field.openai))
}
"""Name in a request's body → the sampling field that it sets."""

IGNORED = {
    "model",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prediction",
    "request_id",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_salt",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "include_reasoning",
    "add_special_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "mm_processor_kwargs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "guided_decoding_backend",
    "kv_transfer_params",
}
"""Names that change nothing here: of transport and billing, or of features that RWKV models do not have."""

OFF: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "documents": ([],),
}
"""Names that are not supported → their values that ask for nothing. Null asks for nothing under every name."""

REASONS = {
    "logprobs": "output.logprobs in the job file writes log-probabilities",
    "tool_choice": 'the model decides whether it calls a tool; leave it out, or set it to "auto" or "none"',
    "function_call": 'the model decides whether it calls a function; leave it out, or set it to "auto" or "none"',
}
"""Name that is not supported → what to do instead of leaving it out."""

OLDER_REASONS = {
    **{name: reason for name, reason in REASONS.items() if name == "logprobs"},
    "tools": 'there are no tool calls; leave it out, or set tool_choice to "none"',
    "functions": 'there are no tool calls; leave it out, or set function_call to "none"',
}
"""`REASONS` of a version without tools."""

CHOICES = {"tools": "tool_choice", "functions": "function_call"}
"""Name of the definitions of tools → the name that says whether the model may call them."""

Setting = tuple[str, Any]
"""A column's name and its value."""


def columns_of(body: Any, has_tools: bool = True) -> dict[str, Any]:
    """Returns the prompt and the sampling fields of one request, by column.

    Args:
        has_tools: False reads a request as a version without tools did, for a job that it has begun.

    Raises:
        RowError: the body is no object, or asks for something that would change the result and is not supported.
    """
    if not isinstance(body, dict):
        raise RowError("bad_json", f"body: got {shown_json(body)}, expected an object")
    columns: dict[str, Any] = {}
    for name, value in body.items():
        for column, setting in _settings(body, name, value, has_tools):
            if column in columns and columns[column] != setting:
                raise RowError("bad_sampling", f"body.{name}: {column} is given twice, with two values; expected one")
            columns[column] = setting
    return columns


def _settings(body: dict[str, Any], name: str, value: Any, has_tools: bool) -> Iterator[Setting]:
    """The columns that one name of a body sets."""
    if value is None or name in IGNORED or any(type(value) is type(off) and value == off for off in OFF.get(name, ())):
        return
    if name in ("messages", "chat_template_kwargs"):
        if has_tools or name == "messages":
            yield name, value
    elif name in CHOICES and (value == [] or body.get(CHOICES[name]) == "none"):
        return
    elif name in CHOICES and has_tools:
        yield "tools", value
    elif name == "prompt":
        yield _prompt(value)
    elif name in SAMPLING_NAMES:
        column = SAMPLING_NAMES[name]
        yield column, _schema(value) if column == "json_schema" else value
    elif name in CONSTRAINTS:
        yield from CONSTRAINTS[name](f"body.{name}", value)
    else:
        reason = (REASONS if has_tools else OLDER_REASONS).get(name, "leave it out")
        raise RowError("bad_sampling", f"body.{name} is not supported: {reason}")


def _prompt(value: Any) -> Setting:
    """The prompt of a completion: a text or token ids, also as the only item of a list."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise RowError("bad_type", f"body.prompt: has {len(value)} prompts, expected one for each request")
        value = value[0]
    return "prompt_token_ids" if isinstance(value, list) else "prompt", value


def _response_format(where: str, value: Any) -> Iterator[Setting]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if schema is None:
            raise RowError("bad_sampling", f"{where}: json_schema.schema is missing; expected a JSON schema there")
        yield "json_schema", _schema(schema)
    elif kind == "json_object":
        yield "json_schema", _schema({"type": "object"} if value.get("schema") is None else value["schema"])
    elif kind != "text":
        raise RowError("bad_sampling", f"{where}: got type {kind!r}, expected 'text', 'json_object' or 'json_schema'")


def _structured_outputs(where: str, value: Any) -> Iterator[Setting]:
    if not isinstance(value, dict):
        raise RowError("bad_sampling", f"{where}: got {shown_json(value)}, expected an object")
    for name, constraint in value.items():
        if constraint is None or constraint is False:
            continue
        if name not in STRUCTURED:
            raise RowError("bad_sampling", f"{where}.{name} is not supported: leave it out")
        yield from STRUCTURED[name](f"{where}.{name}", constraint)


def _json(where: str, value: Any) -> Iterator[Setting]:
    yield "json_schema", _schema(value)


def _json_object(where: str, value: Any) -> Iterator[Setting]:
    yield "json_schema", _schema({"type": "object"})


def _regex(where: str, value: Any) -> Iterator[Setting]:
    yield "regex", value


def _grammar(where: str, value: Any) -> Iterator[Setting]:
    yield "grammar", value


def _choice(where: str, value: Any) -> Iterator[Setting]:
    if not is_texts(value):
        raise RowError("bad_sampling", f"{where}: got {shown_json(value)}, expected a list of at least one string")
    yield "grammar", grammar_of_choice(value)


def _schema(value: Any) -> Any:
    """A JSON schema as text."""
    return json.dumps(value) if isinstance(value, dict) else value


STRUCTURED: dict[str, Callable[[str, Any], Iterator[Setting]]] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
"""Name in vLLM's `structured_outputs` → the function that gives the column for it."""

CONSTRAINTS: dict[str, Callable[[str, Any], Iterator[Setting]]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    **{f"guided_{name}": STRUCTURED[name] for name in ("json", "regex", "choice", "grammar")},
}
"""Name in a request's body that constrains the text → the function that gives the column for it."""
