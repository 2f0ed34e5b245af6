"""OpenAI's batch format as a table: `custom_id` becomes `id`, the body's prompt and sampling fields become columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import RowError
from ...sampling_params import SAMPLING_FIELDS
from .files import InputFile
from .json_kinds import STRING, Expected
from .jsonl import JsonlTable, Line
from .roles import PROMPT_KINDS, SAMPLING_KINDS

SAMPLING_NAMES = {alias: name for name, field in SAMPLING_FIELDS.items() for alias in field.openai}
"""Name in a request's body → the sampling field that it sets."""

IGNORED = {"model", "stream", "stream_options", "user", "metadata", "store", "service_tier"}
"""Names in a request's body that change billing or transport, never the answer."""


class OpenAIBatchTable(JsonlTable):
    """Lines of {"custom_id": …, "body": {…}} for chat/completions or completions.

    All requests of a file have the same kind of prompt, that of the first one that can be served.
    """

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._role: str | None = None
        sampling = {name: SAMPLING_KINDS[name] for name in SAMPLING_NAMES.values()}
        super().__init__(file, {"id": STRING, **PROMPT_KINDS, **sampling})

    @staticmethod
    def recognizes(head: bytes) -> bool:
        try:
            first = json.loads(head.lstrip().partition(b"\n")[0])
        except (ValueError, RecursionError):
            return False
        return isinstance(first, dict) and "custom_id" in first and isinstance(first.get("body"), dict)

    def parse(self, line: bytes) -> Line:
        request, error = super().parse(line)
        if error is not None:
            return Line({}, error)
        row = {"id": request.get("custom_id")}
        try:
            row.update(_columns(request.get("body")))
        except RowError as found:
            error = found
        role = next((role for role in PROMPT_KINDS if row.get(role) is not None), None)
        if role is None:
            return Line(row, error)
        if self._role is None:
            self._role = role if PROMPT_KINDS[role].fits(row[role]) else None
        elif role != self._role:
            del row[role]
            error = error or RowError("bad_type", f"got {role}, expected {self._role} as in the requests above")
        return Line(row, error)


def _columns(body: Any) -> Iterator[tuple[str, Any]]:
    """The columns of one request. Raises RowError."""
    if not isinstance(body, dict):
        raise RowError("bad_json", "body: expected an object")
    for name, value in body.items():
        if name == "messages":
            yield name, [_message(message) for message in value] if isinstance(value, list) else value
        elif name == "prompt":
            yield ("prompt_token_ids" if isinstance(value, list) else name), value
        elif name in SAMPLING_NAMES:
            yield SAMPLING_NAMES[name], value
        elif name not in IGNORED and not _is_off(name, value):
            raise RowError("bad_sampling", f"body.{name} is not supported")


def _is_off(name: str, value: Any) -> bool:
    """Whether a name that is not supported has the value that asks for nothing."""
    if name == "logprobs":
        return value is None or value is False
    return value is None or (name == "response_format" and value == {"type": "text"})


def _message(message: Any) -> Any:
    """A message whose content is plain text, also where it came as a list of text parts."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise RowError("bad_messages", "expected content of type text only")
    return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}
