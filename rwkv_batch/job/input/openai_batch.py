"""OpenAI's batch format as a table: `custom_id` becomes `id`, the body's prompt and sampling fields become columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .files import InputFile
from .jsonl import JsonlTable, Kind, fits
from .table import READ_ERROR

PROMPT_KINDS: dict[str, Kind] = {
    "prompt": "string",
    "messages": [{"role": "string", "content": "string"}],
    "prompt_token_ids": ["int"],
}
FIELDS: dict[str, Kind] = {
    "temperature": "float",
    "top_p": "float",
    "max_tokens": "int",
    "seed": "int",
    "n": "int",
    "presence_penalty": "float",
    "frequency_penalty": "float",
    "stop": "strings",
    "logit_bias": "biases",
}

IGNORED = {"model", "stream", "stream_options", "user", "metadata", "store", "service_tier"}
"""What changes who is billed or how an answer travels, never the answer."""


class OpenAIBatchTable(JsonlTable):
    """Lines of {"custom_id": …, "body": {…}} for chat/completions or completions."""

    def __init__(self, file: InputFile) -> None:
        self._part: str | None = None
        super().__init__(file, {"id": "string", **PROMPT_KINDS, **FIELDS})

    def parse(self, line: bytes) -> dict[str, Any]:
        request = super().parse(line)
        if READ_ERROR in request:
            return request
        body = request.get("body")
        row = {"id": request.get("custom_id")}
        try:
            row.update(_columns(body))
        except ValueError as error:
            row[READ_ERROR] = str(error)
        part = next((part for part in PROMPT_KINDS if row.get(part) is not None), None)
        if part is not None and self._part is None and fits(row[part], PROMPT_KINDS[part]):
            self._part = part  # the first good prompt decides what all of the file's prompts are
        if part is not None and self._part not in (None, part):
            del row[part]
            row.setdefault(READ_ERROR, f"bad_type: got {part}, expected {self._part} as in the requests above")
        return row


def _columns(body: Any) -> Iterator[tuple[str, Any]]:
    """The columns of one request. Raises ValueError with "code: sentence"."""
    if not isinstance(body, dict):
        raise ValueError("bad_json: body: expected an object")
    for name, value in body.items():
        if name == "messages":
            yield name, [_message(message) for message in value] if isinstance(value, list) else value
        elif name == "prompt":
            yield ("prompt_token_ids" if isinstance(value, list) else name), value
        elif name == "max_completion_tokens":
            yield "max_tokens", value
        elif name in FIELDS:
            yield name, value
        elif name not in IGNORED and not _is_off(name, value):
            raise ValueError(f"bad_sampling: body.{name} is not supported")


def _is_off(name: str, value: Any) -> bool:
    if name == "logprobs":
        return value is None or value is False
    return value is None or (name == "response_format" and value == {"type": "text"})


def _message(message: Any) -> Any:
    """A message whose content is plain text, also where it came as a list of text parts."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise ValueError("bad_messages: expected content of type text only")
    return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}
