"""Prompts from conversations: chat formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from ..errors import RowError
from .messages import plain_messages

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)
ROLE_NAMES: dict[str, Role] = {**{role: role for role in ROLES}, "developer": "system"}
"""Name of a role in a message → the role."""


class Turn(NamedTuple):
    """A message of a conversation."""

    role: Role
    content: str


def render_messages(messages: Any, chat_format: str = "rwkv") -> str:
    """The prompt of a conversation.

    Args:
        messages: `role` ("system" or "developer", "user", "assistant") and `content` of each turn, in any form that
            `plain_messages` takes.
        chat_format: a name of `CHAT_FORMATS`.

    Raises:
        RowError: code "bad_messages", or "invalid_text" for bytes that are not UTF-8.
    """
    turns = [_turn(number, **message) for number, message in enumerate(plain_messages(messages))]
    if not turns:
        raise RowError("bad_messages", "the list of messages is empty; expected at least one")
    return CHAT_FORMATS[chat_format](turns)


def _turn(number: int, role: str, content: str) -> Turn:
    """A turn, its role checked; the error calls it by its number."""
    known = ROLE_NAMES.get(role)
    if known is None:
        expected = ", ".join(ROLE_NAMES)
        raise RowError("bad_messages", f"message {number} has role {role!r}; expected one of {expected}")
    return Turn(known, content)


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
