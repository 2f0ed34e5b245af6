"""Renders a template for many rows in another process, so that no row takes more than its time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...text import rendering
from ...text.rendering import Answer, answering
from .template import Template


class Renderer(rendering.Renderer):
    """Renders a template, for lists of rows; of each row the values by column name. Errors are "template_error".

    Args:
        source: a template that `Template` accepts.
        setting: the setting that has it, for messages.
    """

    def __init__(self, source: str, setting: str = "input.template") -> None:
        function = f"{answer_rows.__module__}:{answer_rows.__name__}"
        super().__init__(function, (source, setting), setting.rpartition(".")[2])


def answer_rows(shared: tuple[str, str]) -> Callable[[list[Mapping[str, Any]]], list[Answer]]:
    """What the process calls: see `answering`.

    Args:
        shared: a template and its setting, as `Renderer` takes them.
    """
    return answering(Template(*shared).render, shared[1].rpartition(".")[2])
