"""How Jinja templates fail: chat templates, and the templates of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateSyntaxError

from ..errors import ConfigurationError

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
