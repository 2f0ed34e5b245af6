"""The chat formats that RWKV models are trained with. Each is a function that writes the messages of a conversation.

The texts follow RWKV's published templates: `rwkv` those of the G1 series, `bot` and `function_calling` the chat
template of the models in Hugging Face layout. No message can begin a turn: what would is changed, see each function.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from .messages import ToolDefinition, Turn

THOUGHTS = {"none": "", "open": "<think", "fake": "<think></think"}
"""Value of `ChatSettings.think` → how the assistant's turn begins. The last `>` is left to the model: it may be one
token with what follows."""

Ending: TypeAlias = Literal["opened", "continued", "closed"]
"""How a prompt ends: with a new turn of the assistant, inside the last message, or after it."""


class Written(NamedTuple):
    """A text, and the stop strings that end the model's turn after it."""

    text: str
    stop: tuple[str, ...]


class Draft(NamedTuple):
    """A conversation that has been checked.

    Args:
        turns: at least one.
        thought: how a new turn of the assistant begins: a value of `THOUGHTS`.
    """

    turns: Sequence[Turn]
    tools: Sequence[ToolDefinition]
    ending: Ending
    thought: str

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) or any(turn.role == "tool" or turn.tool_calls for turn in self.turns)


class BuiltIn(NamedTuple):
    """A chat format.

    Args:
        stop: the stop strings of a conversation without tools.
        write: writes a conversation.
    """

    stop: tuple[str, ...]
    write: Callable[[Draft], Written]


RWKV_STOP = ("\n\nUser:",)
_RWKV_LABELS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "User"}


def write_rwkv(draft: Draft) -> Written:
    """Turns `System: ...`, `User: ...` and `Assistant: ...`, divided by a blank line.

    No turn has a blank line inside: those of messages are removed, so that no message can begin a turn. Tools are
    listed in the system's turn; a tool's result is a turn of the user that begins with `Function output:`.
    """
    turns = list(draft.turns)
    if draft.tools:
        system = turns.pop(0).content if turns and turns[0].role == "system" else ""
        turns.insert(0, Turn("system", f"{_cleaned(system)}\n{_rwkv_tools(draft.tools)}"))
    parts = []
    for turn in turns:
        content = f"Function output:\n{turn.content}" if turn.role == "tool" else turn.content
        calls = (f"```json\n{_compact(call.as_json())}\n```" for call in turn.tool_calls)
        text = _cleaned("\n".join([content, *calls]))
        label = _RWKV_LABELS[turn.role]
        parts.append(f"{label}: {text}" if text else f"{label}:")
    if draft.ending == "opened":
        parts.append(f"Assistant: {draft.thought}".rstrip())
    return Written("\n\n".join(parts), RWKV_STOP)


def _cleaned(text: str) -> str:
    """The text without blank lines, and without white space around it."""
    if "\r" in text:
        text = re.sub(r"(?<!\r)\r+\n", "\n", text)
    return _without_blank_lines(text).strip()


def _rwkv_tools(tools: Sequence[ToolDefinition]) -> str:
    lines = []
    for tool in tools:
        properties = tool.parameters.get("properties") if isinstance(tool.parameters, dict) else None
        described = {"description": tool.description} if tool.description else {}
        arguments = tool.parameters if properties is None else properties
        lines.append(_compact({"name": tool.name, **described, "arguments": arguments}))
    return "Tools:\n[\n" + ",\n".join(lines) + "\n]\nReturn only a JSON function call."


BOT_MARK, BOT_MARK_INSIDE = "✿", "❀"
"""The character that divides turns, one token of RWKV's vocabulary; and the one that replaces it inside a message."""
BOT_STOP = (BOT_MARK,)
_BOT_LABELS = {"system": "System", "user": "User", "assistant": "Bot"}


def write_bot(draft: Draft) -> Written:
    """Turns `System✿...✿`, `User✿...✿` and `Bot✿...✿`, one after the other.

    The character ✿ inside a message becomes ❀. A conversation with tools, tool calls or results of tools is written
    as `write_function_calling` does: `bot` has no form of its own for these.
    """
    if draft.uses_tools:
        return write_function_calling(draft)
    parts = [
        f"{_BOT_LABELS[turn.role]}✿{_trimmed(turn).replace(BOT_MARK, BOT_MARK_INSIDE)}{BOT_MARK}"
        for turn in draft.turns
    ]
    if draft.ending == "opened":
        parts.append(f"Bot✿{draft.thought}")
    text = "\n".join(parts)
    return Written(text.removesuffix(BOT_MARK) if draft.ending == "continued" else text, BOT_STOP)


FUNCTION_CALLING_STOP = ("\n### User", "\n### Tool Output")
_HEADERS = {"system": "### System", "user": "### User", "assistant": "### Assistant", "tool": "### Tool Output"}
_HEADER_INSIDE = re.compile(rf"^(?=(?:{'|'.join(_HEADERS.values())}))", re.MULTILINE)
_CALL_MARK = "**Tool Call:**"
_HOW_TO_CALL = [
    "To call one of these tools, write exactly this format:",
    _CALL_MARK,
    "```json",
    '{"name": "tool_name", "arguments": {"key": "value"}}',
    "```",
    "Do not invent tool call IDs or write tool outputs yourself.",
]


def write_function_calling(draft: Draft) -> Written:
    """Turns under the lines `### System`, `### User`, `### Assistant` and `### Tool Output`.

    A line inside a message that begins as one of these gets a space in front. Tools are described in the system's
    turn; a call is JSON under the line `**Tool Call:**`, a result is JSON.
    """
    lines: list[str] = []
    turns = [turn for turn in draft.turns if turn.role != "system" or _trimmed(turn)]
    num_system = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if num_system or draft.tools:
        lines += [_HEADERS["system"], *map(_guarded, turns[:num_system])]
        lines += [line for tool in draft.tools for line in _described(tool)]
        lines += _HOW_TO_CALL if draft.tools else []
    role = "system"
    for turn in turns[num_system:]:
        lines += [] if turn.role == role == "system" else [_HEADERS[turn.role]]
        lines += _content(turn)
        role = turn.role
    if draft.ending == "opened":
        lines += [_HEADERS["assistant"], draft.thought]
    return Written("\n".join(lines), FUNCTION_CALLING_STOP)


def _content(turn: Turn) -> list[str]:
    """The lines of a turn under its header."""
    if turn.role == "tool":
        return _fenced(parsed_or_text(turn.content))
    text = _guarded(turn)
    calls = [line for call in turn.tool_calls for line in (_CALL_MARK, *_fenced(call.as_json()))]
    return [text, *calls] if text or turn.role == "user" else calls


def _guarded(turn: Turn) -> str:
    """The text of a turn, in which no line begins a turn."""
    text = _trimmed(turn)
    return _HEADER_INSIDE.sub(" ", text) if "###" in text else text


def _described(tool: ToolDefinition) -> list[str]:
    description = _guarded(Turn("system", tool.description))
    described = [f"**Description:** {description}"] if description else []
    return [f"### `{tool.name}`", *described, "**Parameters:**", *_fenced(tool.parameters)]


def _fenced(value: Any) -> list[str]:
    return ["```json", json.dumps(value, ensure_ascii=False, indent=2), "```"]


def _trimmed(turn: Turn) -> str:
    """The text of a turn with line feeds only, without spaces at the ends of lines and blank lines at its end.

    The user's has no blank lines at all.
    """
    text = turn.content.replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n")).rstrip("\n")
    return _without_blank_lines(text) if turn.role == "user" else text


def _without_blank_lines(text: str) -> str:
    return re.sub(r"\n{2,}", "\n", text) if "\n\n" in text else text


def parsed_or_text(text: str) -> Any:
    """The value of a JSON text; any other text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


CHAT_FORMATS: dict[str, BuiltIn] = {
    "rwkv": BuiltIn(RWKV_STOP, write_rwkv),
    "bot": BuiltIn(BOT_STOP, write_bot),
    "function_calling": BuiltIn(FUNCTION_CALLING_STOP, write_function_calling),
}
"""Name of a chat format → how it is written. `ChatSettings.format` takes these names."""
