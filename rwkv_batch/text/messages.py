"""Conversations in all forms in which tables hold them, made into one form: a list of messages of plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import RowError

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""


def plain_messages(messages: Any) -> list[dict[str, str]]:
    """Returns the messages of a conversation, each with a role and a content that are strings.

    Args:
        messages: a list of messages; or an object of two lists, `role` and `content`; or JSON text of either. Text may
            be bytes in UTF-8. The content of a message is text, or a list of parts, each of them text or
            `{"type": "text", "text": ...}`; the texts of all parts are joined.

    Raises:
        RowError: code "bad_messages", or "invalid_text" for bytes that are not UTF-8.

    >>> plain_messages('[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]')
    [{'role': 'user', 'content': 'Hi'}]
    """
    messages = _text(messages, "messages")
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise _bad(f"the messages are text that is not JSON: {error}") from error
    if isinstance(messages, Mapping):
        messages = _from_lists(messages)
    if not isinstance(messages, list | tuple):
        raise _bad(f"the messages are of type {type(messages).__name__}; expected a list of messages")
    return [_plain(number, message) for number, message in enumerate(messages)]


def _from_lists(messages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of an object that has a list of roles and a list of contents."""
    roles, contents = messages.get("role"), messages.get("content")
    if not isinstance(roles, list) or not isinstance(contents, list) or len(roles) != len(contents):
        raise _bad("the messages are one object; expected a list of messages, or lists role and content of one length")
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _plain(number: int, message: Any) -> dict[str, str]:
    """A message with its texts as strings; errors call it by its number."""
    if not isinstance(message, Mapping):
        raise _bad(f"message {number} is a {type(message).__name__}; expected role and content")
    role = _text(message.get("role"), f"the role of message {number}")
    if not isinstance(role, str):
        raise _bad(f"message {number} has role {role!r}; expected a string")
    where = f"message {number} (role {role!r})"
    content = _text(message.get("content"), f"the content of message {number}")
    if isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise _bad(f"{where} has content of type {type(content).__name__}; expected a string, or parts of type text")
    return {"role": role, "content": content}


def _part(where: str, part: Any) -> str:
    """The text of one content part."""
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind not in TEXT_PARTS:
            raise _bad(f"{where} has a content part of type {kind!r}; RWKV models read text only, expected type 'text'")
        part = part.get("text")
    text = _text(part, "a content part")
    if not isinstance(text, str):
        raise _bad(f"{where} has a content part whose text is a {type(text).__name__}; expected a string")
    return text


def _text(value: Any, where: str) -> Any:
    """The string that bytes hold in UTF-8, and any other value itself."""
    return utf8(value, where) if isinstance(value, bytes) else value


def utf8(value: bytes, where: str) -> str:
    """Returns the text of bytes in UTF-8.

    Args:
        where: what holds the bytes, for the error.

    Raises:
        RowError: code "invalid_text".
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError("invalid_text", f"{where}: expected text in UTF-8: {error}") from error


def _bad(sentence: str) -> RowError:
    return RowError("bad_messages", sentence)
