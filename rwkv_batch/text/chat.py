"""Prompts from conversations: chat formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from ..errors import RowError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


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
