"""The templates of report pages, which share their look: macros and a style beside this module."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ..messages import printable


@cache
def environment() -> Environment:
    """Where templates are loaded from this folder. Everything that they show is escaped."""
    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
        loader=FunctionLoader(_source),
    )


def style() -> Markup:
    """The style of a page."""
    return Markup(_source("report.css"))


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _visible(value: Any) -> Any:
    """A text without characters that steer the direction of writing or that no page may hold."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
