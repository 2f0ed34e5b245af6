"""Conversations in all forms in which tables hold them, made into one form: a list of messages of plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from ..errors import RowError

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
ROLE_NAMES: dict[str, Role] = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
"""Name of a role in a message → the role."""

_TEXT_MESSAGE = {"role", "content"}
TEXT_FIELDS = ("tool_call_id", "name", "reasoning_content")
"""Fields of a message, besides role and content, that are text."""


def as_lists(value: Any) -> Any:
    """A value with lists in place of arrays, at any depth: tables of pandas hold lists as arrays of numpy."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: as_lists(item) for key, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


class ToolCall(NamedTuple):
    """A call of a tool, as the assistant wrote it: the tool's name, and JSON."""

    name: str
    arguments: Any

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": self.arguments}


class ToolDefinition(NamedTuple):
    """A tool that the model may call: its name on one line, and the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Any


class Turn(NamedTuple):
    """A message of a conversation."""

    role: Role
    content: str
    tool_calls: Sequence[ToolCall] = ()


def plain_messages(messages: Any, only_texts: bool = False) -> list[dict[str, Any]]:
    """Returns the messages of a conversation, each with a role and a content that are strings.

    Args:
        messages: a list of messages; or an object of two lists, `role` and `content`; or JSON text of either. Text may
            be bytes in UTF-8. The content of a message is text, or a list of parts, each of them text or
            `{"type": "text", "text": ...}`; the texts of all parts are joined. It may be null beside `tool_calls`.
        only_texts: nothing is read but role and content, as a version without tools did.

    Returns:
        Messages with `role` and `content`, and with those of `TEXT_FIELDS` that they have. `tool_calls` is a list of
        `{"type": "function", "function": {"name", "arguments"}}`, with an `id` where there is one; `arguments` that are
        JSON text are parsed. An earlier API's `function_call` becomes such a list.

    Raises:
        RowError: code "bad_messages", or "invalid_text" for bytes that are not UTF-8.

    >>> plain_messages('[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]')
    [{'role': 'user', 'content': 'Hi'}]
    """
    messages = _parsed(messages, "messages")
    if isinstance(messages, Mapping):
        if only_texts:
            messages = {name: messages[name] for name in ("role", "content") if name in messages}
        messages = _from_lists(messages)
    if not isinstance(messages, list | tuple):
        raise _bad(f"the messages are of type {type(messages).__name__}; expected a list of messages")
    return [_plain(number, message, only_texts) for number, message in enumerate(messages)]


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns of messages that `plain_messages` has returned.

    Raises:
        RowError: code "bad_messages": there is none, or an unknown role, or a call of a role that calls no tools.
    """
    if not messages:
        raise _bad("the list of messages is empty; expected at least one")
    turns = []
    for number, message in enumerate(messages):
        role = ROLE_NAMES.get(message["role"])
        if role is None:
            raise _bad(f"message {number} has role {message['role']!r}; expected one of {', '.join(ROLE_NAMES)}")
        calls = [ToolCall(**call["function"]) for call in message.get("tool_calls", ())]
        if calls and role != "assistant":
            raise _bad(f"message {number} (role {message['role']!r}) has tool_calls; expected them of the assistant")
        turns.append(Turn(role, message["content"], calls))
    return turns


def plain_tools(tools: Any) -> list[dict[str, Any]]:
    """Returns the definitions of tools, each as OpenAI's API has it; none for None and for an empty list.

    Args:
        tools: a list of `{"type": "function", "function": {"name", "description", "parameters"}}`, or of the inner
            objects alone; or JSON text of a list, or of its items.

    Raises:
        RowError: code "bad_messages".

    >>> plain_tools([{"name": "now", "description": None}])
    [{'type': 'function', 'function': {'name': 'now'}}]
    """
    tools = [] if tools is None else _parsed(tools, "tools")
    if not isinstance(tools, list | tuple):
        raise _bad(f"tools are of type {type(tools).__name__}; expected a list of definitions")
    return [_plain_tool(number, _parsed(tool, f"tool {number}")) for number, tool in enumerate(tools)]


def definitions_of(tools: Sequence[Mapping[str, Any]]) -> list[ToolDefinition]:
    """The definitions in what `plain_tools` has returned."""
    functions = [tool["function"] for tool in tools]
    return [
        ToolDefinition(one["name"], one.get("description", ""), one.get("parameters", {"type": "object"}))
        for one in functions
    ]


def _plain_tool(number: int, tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type") not in (None, "function"):
        raise _bad(f"tool {number} is no definition of a function; expected type 'function' and a name")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _bad(f"tool {number} has the name {name!r}; expected text on one line")
    if not isinstance(description, str | None):
        raise _bad(f"tool {number} has a description of type {type(description).__name__}; expected text")
    given = {key: _without_nulls(value) for key, value in function.items() if value is not None}
    if "parameters" in given:
        given["parameters"] = _parsed(given["parameters"], f"the parameters of tool {number}")
    return {"type": "function", "function": given}


def _without_nulls(value: Any) -> Any:
    """A value as a table holds it, in which an object has null for every name that only others have, without these."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _from_lists(messages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of an object that has a list of roles and a list of contents, and perhaps lists of other fields."""
    lists = {name: items for name, items in messages.items() if items is not None}
    if not {"role", "content"} <= lists.keys() or not all(isinstance(items, list) for items in lists.values()):
        lists = {}
    if len({len(items) for items in lists.values()}) != 1:
        raise _bad("the messages are one object; expected a list of messages, or lists role and content of one length")
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _plain(number: int, message: Any, only_texts: bool) -> dict[str, Any]:
    """A message with its texts as strings; errors call it by its number."""
    if type(message) is dict and message.keys() == _TEXT_MESSAGE and set(map(type, message.values())) == {str}:
        return {"role": message["role"], "content": message["content"]}  # what most messages are
    if not isinstance(message, Mapping):
        raise _bad(f"message {number} is a {type(message).__name__}; expected role and content")
    role = _text(message.get("role"), f"the role of message {number}")
    if not isinstance(role, str):
        raise _bad(f"message {number} has role {role!r}; expected a string")
    where = f"message {number} (role {role!r})"
    calls = [] if only_texts else [_plain_call(where, call) for call in _calls(where, message)]
    content = _text(message.get("content"), f"the content of message {number}")
    if isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise _bad(f"{where} has content of type {type(content).__name__}; expected a string, or parts of type text")
    fields = () if only_texts else TEXT_FIELDS
    others = {name: _text(message[name], f"{name} of {where}") for name in fields if message.get(name)}
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {}), **others}


def _calls(where: str, message: Mapping[str, Any]) -> Sequence[Any]:
    """The tool calls of a message, as they were given."""
    calls = _parsed(message.get("tool_calls"), f"tool_calls of {where}") or []
    if not isinstance(calls, list | tuple):
        raise _bad(f"{where} has tool_calls of type {type(calls).__name__}; expected a list")
    earlier = _parsed(message.get("function_call"), f"function_call of {where}")
    return calls or ([earlier] if earlier else [])


def _plain_call(where: str, call: Any) -> dict[str, Any]:
    function = (call.get("function") or call) if isinstance(call, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name or not isinstance(function, Mapping):
        raise _bad(f"{where} has a tool call without a name; expected function.name and function.arguments")
    arguments = _without_nulls(function.get("arguments"))
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    given_id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**given_id, "type": "function", "function": {"name": name, "arguments": arguments}}


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


def _parsed(value: Any, where: str) -> Any:
    """The value of a JSON text, and any other value itself."""
    value = _text(value, where)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{where}: text that is not JSON: {error}") from error


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
