"""Prompts from conversations (chat formats) and from columns (Jinja templates)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

from ..errors import ConfigurationError, RowError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)

# A template is a small program over a row's data, and may fail as programs do.
_PROGRAM_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class Turn(NamedTuple):
    """A message of a conversation."""

    role: Role
    content: str


def render_messages(messages: Sequence[Mapping[str, str]], chat_format: str = "rwkv") -> str:
    """The prompt of a conversation.

    Args:
        messages: `role` ("system", "user" or "assistant") and `content` of each turn.
        chat_format: a name of `CHAT_FORMATS`.

    Raises:
        RowError: code "bad_messages".
    """
    if not messages:
        raise RowError("bad_messages", "the list of messages is empty; expected at least one")
    return CHAT_FORMATS[chat_format]([_turn(number, message) for number, message in enumerate(messages)])


def _turn(number: int, message: Mapping[str, str]) -> Turn:
    """A message, checked; messages of errors call it by its number."""
    if not isinstance(message, Mapping):
        raise RowError("bad_messages", f"message {number} is a {type(message).__name__}; expected role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError("bad_messages", f"message {number} has role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        found = type(content).__name__
        raise RowError(
            "bad_messages", f"message {number} (role {role!r}) has content of type {found}; expected a string"
        )
    return Turn(role, content)


def rwkv_chat(turns: Sequence[Turn]) -> str:
    """The chat format of RWKV's World and G1 models.

    `System: ...`, `User: ...` and `Assistant: ...` are divided by a blank line. Blank lines inside a message are
    removed, so that no content can begin a turn. The text ends with `Assistant:`; or, where the last message is the
    assistant's, with that message, which the model continues.
    """
    parts = []
    for role, content in turns:
        text = re.sub(r"\n{2,}", "\n", content.replace("\r\n", "\n")).strip()
        parts.append(f"{role.capitalize()}: {text}" if text else f"{role.capitalize()}:")
    if turns[-1].role != "assistant":
        parts.append("Assistant:")
    return "\n\n".join(parts)


CHAT_FORMATS: dict[str, Callable[[Sequence[Turn]], str]] = {"rwkv": rwkv_chat}
"""Name of a chat format → the function that writes the prompt of a conversation, which has at least one turn."""


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
