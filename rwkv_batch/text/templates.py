"""Jinja templates, of conversations and of jobs: where their sources come from, and how they fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from jinja2 import TemplateSyntaxError

from ..errors import ConfigurationError, looked_up
from ..user_files import read_text, reason_of

PROGRAM_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What a template that runs may raise, besides Jinja's TemplateError: a template is a small program."""


@contextmanager
def compiling(name: str) -> Iterator[None]:
    """Inside, a template that cannot be compiled raises ConfigurationError, which names the line where that is known.

    Args:
        name: what the template is called in errors.
    """
    try:
        yield
    except TemplateSyntaxError as error:
        raise ConfigurationError(f"{name}, line {error.lineno}: {error.message}") from error
    except ConfigurationError:
        raise
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"{name}: Python cannot compile it: {error or type(error).__name__}") from error


def template_source(template: str | PathLike[str], setting: str) -> tuple[str, str]:
    """The source of a template that a setting gives, itself where it looks like Jinja, and the file that it is from.

    Args:
        setting: its name, for errors.

    Raises:
        ConfigurationError: it is neither a template nor a file.
    """
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template, ""
    path = os.path.expanduser(template)
    try:
        return read_text(path), os.fspath(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"got {os.fspath(template)!r}, expected a Jinja template or an existing file{looked_up(template)}: "
            f"{reason_of(error)}",
            setting=setting,
        ) from error
