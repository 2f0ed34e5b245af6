"""From messages and columns to the text of a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import ConfigurationError, RowError

_LABELS = {"system": "System", "user": "User", "assistant": "Assistant"}
# A template is a small program over a row's data, and may fail as programs do.
_PROGRAM_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def render_messages(messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt of a conversation in RWKV's chat format.

    `System: ...`, `User: ...` and `Assistant: ...` are divided by a blank line. Inside a message there is none, so that
    no content can begin a turn of its own. The text ends with `Assistant:`, or with the last message where that is the
    assistant's: the model goes on with it.

    Args:
        messages: `role` ("system", "user" or "assistant") and `content` of each turn.

    Raises:
        RowError: code "bad_messages".
    """
    if not messages:
        raise RowError("bad_messages", "the list of messages is empty; expected at least one")
    turns = [_turn(number, message) for number, message in enumerate(messages)]
    if messages[-1]["role"] != "assistant":
        turns.append("Assistant:")
    return "\n\n".join(turns)


def _turn(number: int, message: Mapping[str, str]) -> str:
    if not isinstance(message, Mapping):
        raise RowError("bad_messages", f"message {number} is a {type(message).__name__}; expected role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _LABELS:
        raise RowError("bad_messages", f"message {number} has role {role!r}; expected one of {', '.join(_LABELS)}")
    if not isinstance(content, str):
        found = type(content).__name__
        raise RowError(
            "bad_messages", f"message {number} (role {role!r}) has content of type {found}; expected a string"
        )
    text = re.sub(r"\n{2,}", "\n", content.replace("\r\n", "\n")).strip()
    return f"{_LABELS[role]}: {text}" if text else f"{_LABELS[role]}:"


class Template:
    """A Jinja template, compiled once and run in Jinja's sandbox for each row.

    A name that is not a column is an error, not an empty string. One newline at the template's end is dropped. The
    filter `tojson` writes plain JSON, without escapes for HTML.

    Raises:
        ConfigurationError: a syntax error; the message names the line.
    """

    def __init__(self, source: str) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigurationError(f"template, line {error.lineno}: {error.message}") from error

    def render(self, columns: Mapping[str, Any]) -> str:
        """The prompt of one row.

        Args:
            columns: values by column name; `messages` is one of them where the row has messages.

        Raises:
            RowError: code "template_error": an unknown column, an operation that fails, or one the sandbox forbids.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(columns)
        except (TemplateError, *_PROGRAM_ERRORS) as error:
            message = f"template: {type(error).__name__}: {error} (columns: {', '.join(columns) or 'none'})"
            raise RowError("template_error", message) from error
