"""OpenAI's batch format as a table: `custom_id` becomes `id`, the body's prompt and sampling fields become columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from ...errors import RowError
from .files import InputFile
from .json_kinds import PLAIN_MESSAGES, STRING, Expected
from .jsonl import JsonlTable, Line
from .lines import UTF8_MARK
from .openai_body import SAMPLING_NAMES, columns_of
from .roles import CHAT_KINDS, PROMPT_KINDS, SAMPLING_KINDS
from .table import Table

URLS = ("/v1/chat/completions", "/v1/completions")

_BEGINS_REQUEST = re.compile(rb'\s*\{\s*"custom_id"\s*:')


class OpenAIBatchTable(JsonlTable):
    """Lines of {"custom_id": …, "url": …, "body": {…}} for chat/completions or completions, also both in one file."""

    extensions = (".jsonl", ".ndjson", ".json")
    has_prompts_of_several_kinds = True

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        sampling = {name: SAMPLING_KINDS[name] for name in SAMPLING_NAMES.values()}
        self._has_tools = expected.get("messages") is not PLAIN_MESSAGES
        chat = CHAT_KINDS if self._has_tools else {"messages": PLAIN_MESSAGES}
        super().__init__(file, {"id": STRING, **PROMPT_KINDS, **chat, **sampling})

    @staticmethod
    def recognizes(head: bytes) -> bool:
        """The first line that is an object decides."""
        lines = head.removeprefix(UTF8_MARK).split(b"\n", 100)
        for line in lines[:100]:
            try:
                first = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(first, dict):
                return "custom_id" in first and isinstance(first.get("body"), dict)
        return _BEGINS_REQUEST.match(lines[0]) is not None

    @classmethod
    def settle(cls, tables: Sequence[Table]) -> Sequence[Table]:
        settled = super().settle(tables)
        if all(PROMPT_KINDS.keys().isdisjoint(table.schema.names) for table in settled):
            for table in settled:  # no request has a prompt: each row then says what is wrong with it
                table.schema = table.schema.append(pa.field("prompt", STRING.arrow))
        return settled

    def parse(self, line: bytes) -> Line:
        request, error = super().parse(line)
        if error is not None:
            return Line({}, error)
        row = {"id": request.get("custom_id")}
        try:
            if request.get("url") not in (None, *URLS):
                raise RowError("bad_sampling", f"url: got {request['url']!r}, expected {' or '.join(URLS)}")
            row.update(columns_of(request.get("body"), self._has_tools))
        except RowError as found:
            error = found
        return Line(row, error)
