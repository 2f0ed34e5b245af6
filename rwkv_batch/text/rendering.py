"""Templates run in another process, so that no text takes more than its time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RowError
from ..process_pool import CallFailed, ProcessCaller

TEXT_SECONDS = 3.0
"""The time limit of rendering one text."""
PART_SECONDS = 0.5
"""After this time, or after TEXT_CHARACTERS, the process answers with the texts that it has rendered."""
TEXTS_AT_ONCE = 512
TEXT_CHARACTERS = 32 << 20
"""The length of the longest text that a template may make."""
MEMORY_BYTES = 1 << 30
"""The memory of the process."""

Answer = tuple[str | None, str, str]
"""(the text, "", "") or (None, an error code, the error)."""


class Renderer:
    """Renders the texts of one template, for lists of inputs.

    Args:
        function: "package.module:function". The process calls it once, with `shared`; what it returns is what
            `answering` makes.
        shared: anything that can be pickled, such as the template's source.
        name: what the template is called in errors.
    """

    def __init__(self, function: str, shared: Any, name: str) -> None:
        self._process = ProcessCaller(function, shared, MEMORY_BYTES)
        self._name = name

    def render(self, inputs: Sequence[Any]) -> list[str | RowError]:
        """The text of each input, or its error."""
        found: list[str | RowError] = []
        while len(found) < len(inputs):
            found += self._rendered(inputs[len(found) : len(found) + TEXTS_AT_ONCE])
        return found

    def _rendered(self, inputs: Sequence[Any]) -> list[str | RowError]:
        """The texts of at least the first of these inputs."""
        try:
            answers: list[Answer] = self._process.call(list(inputs), TEXT_SECONDS + PART_SECONDS)
        except CallFailed as error:
            if len(inputs) > 1:
                return [text for one in inputs for text in self._rendered([one])]
            reason = f"takes more than {TEXT_SECONDS:g} s" if error.is_late else f"fails: {error}"
            return [RowError("template_error", f"{self._name}: rendering this text {reason}")]
        return [RowError(code, message) if text is None else text for text, code, message in answers]


def answering(render: Callable[[Any], str], name: str) -> Callable[[list[Any]], list[Answer]]:
    """What the process calls: inputs → the answers of at least the first of them.

    Args:
        render: makes the text of one input, or raises RowError.
        name: what the template is called in errors.
    """

    def answer(one: Any) -> Answer:
        try:
            text = render(one)
        except RowError as error:
            return None, error.code, error.message
        if len(text) > TEXT_CHARACTERS:
            message = f"{name}: the text has {len(text)} characters, expected at most {TEXT_CHARACTERS}"
            return None, "template_error", message
        return text, "", ""

    def answer_all(inputs: list[Any]) -> list[Answer]:
        end = time.monotonic() + PART_SECONDS
        found: list[Answer] = []
        num_characters = 0
        for one in inputs:
            found.append(answer(one))
            num_characters += len(found[-1][0] or "")
            if num_characters > TEXT_CHARACTERS or time.monotonic() > end:
                break
        return found

    return answer_all
