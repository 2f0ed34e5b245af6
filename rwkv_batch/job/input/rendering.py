"""Renders a template for many rows in another process, so that no row takes more than its time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import RowError
from ...process_pool import CallFailed, ProcessCaller
from .template import Template

ROW_SECONDS = 3.0
"""The time limit of rendering one row."""
PART_SECONDS = 0.5
"""After this time, or after PROMPT_CHARACTERS, the process answers with the rows that it has rendered."""
ROWS_AT_ONCE = 512
PROMPT_CHARACTERS = 32 << 20
"""The length of the longest text that a template may make."""
MEMORY_BYTES = 1 << 30
"""The memory of the process."""

_Row = Mapping[str, Any]


class Renderer:
    """Renders a template, for lists of rows.

    Args:
        source: a template that `Template` accepts.
        setting: the setting that has it, for messages.
    """

    def __init__(self, source: str, setting: str = "input.template") -> None:
        function = f"{answer_rows.__module__}:{answer_rows.__name__}"
        self._process = ProcessCaller(function, (source, setting), MEMORY_BYTES)
        self._name = setting.rpartition(".")[2]

    def render(self, rows: Sequence[_Row]) -> list[str | RowError]:
        """The text of each row, or its error: code "template_error".

        Args:
            rows: of each row the values by column name.
        """
        found: list[str | RowError] = []
        while len(found) < len(rows):
            found += self._rendered(rows[len(found) : len(found) + ROWS_AT_ONCE])
        return found

    def _rendered(self, rows: Sequence[_Row]) -> list[str | RowError]:
        """The texts of at least the first of these rows."""
        try:
            answers = self._process.call(list(rows), ROW_SECONDS + PART_SECONDS)
        except CallFailed as error:
            if len(rows) > 1:
                return [text for row in rows for text in self._rendered([row])]
            reason = f"takes more than {ROW_SECONDS:g} s" if error.is_late else f"fails: {error}"
            return [RowError("template_error", f"{self._name}: rendering this row {reason}")]
        return [RowError("template_error", message) if text is None else text for text, message in answers]


def answer_rows(shared: tuple[str, str]) -> Callable[[list[_Row]], list[tuple[str | None, str]]]:
    """What the process calls: rows → (the text, "") or (None, the error) of at least the first of them.

    Args:
        shared: a template and its setting, as `Renderer` takes them.
    """
    template = Template(*shared)
    name = shared[1].rpartition(".")[2]

    def answer(rows: list[_Row]) -> list[tuple[str | None, str]]:
        end = time.monotonic() + PART_SECONDS
        found: list[tuple[str | None, str]] = []
        num_characters = 0
        for row in rows:
            text, message = _answer(template, name, row)
            found.append((text, message))
            num_characters += len(text or "")
            if num_characters > PROMPT_CHARACTERS or time.monotonic() > end:
                break
        return found

    return answer


def _answer(template: Template, name: str, row: _Row) -> tuple[str | None, str]:
    try:
        text = template.render(row)
    except RowError as error:
        return None, error.message
    if len(text) > PROMPT_CHARACTERS:
        limit = f"expected at most {PROMPT_CHARACTERS}"
        return None, f"{name}: the text has {len(text)} characters, {limit}"
    return text, ""
