"""Inspect's messages as conversations of a chat format, and completions as what the model thought and said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..text.thoughts import begun_thought

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage

_THOUGHT = re.compile(r"\s*<think>(.*?)(?:</think>(.*)|\Z)", re.DOTALL)


class Said(NamedTuple):
    """A completion in two parts.

    Args:
        thought: the text between <think> and </think>; None where the model did not think.
        text: all other text.
    """

    thought: str | None
    text: str


def conversation_of(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """The messages as role and content.

    Raises:
        ValueError: a message has something other than text.
    """
    return [{"role": message.role, "content": "".join(_parts(message))} for message in messages]


def _parts(message: ChatMessage) -> Iterable[str]:
    if getattr(message, "tool_calls", None):
        raise ValueError("tool_calls: got a message with tool calls, expected none: this provider offers no tools")
    content: Any = message.content
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
        elif part.type == "text":
            yield part.text
        elif part.type == "reasoning":
            yield f"<think>{part.reasoning}</think>"
        else:
            where = f"a message of role {message.role}"
            raise ValueError(f"content: got {part.type} in {where}, expected text: RWKV models read text only")


def said(prompt: str, completion: str) -> Said:
    """Divides a completion into thought and text. White space around both is removed.

    The prompt may have begun the thought. A thought that does not end leaves no text.
    """
    found = _THOUGHT.match(begun_thought(prompt) + completion)
    if found is None:
        return Said(None, completion.strip())
    thought, text = found[1].strip(), (found[2] or "").strip()
    return Said(thought or None, text)
