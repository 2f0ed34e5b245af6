"""Prompts from columns: Jinja templates, which see the columns of a row as names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import ConfigurationError, RowError
from ..messages import did_you_mean

ROW = "row"
"""The name of the mapping from column to value, for columns whose name is no identifier: row["Question Text"]."""

# A template is a small program over a row's data, and may fail as programs do.
_PROGRAM_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_TEXT_FILTERS = (
    "capitalize",
    "center",
    "e",
    "escape",
    "forceescape",
    "format",
    "indent",
    "lower",
    "replace",
    "string",
    "striptags",
    "title",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
)
"""Jinja's filters that would turn a null into the text "None"."""


class _NullPrinted(Exception):
    """A null would become text."""


class Template:
    """A Jinja template, compiled once and run in Jinja's sandbox for each row.

    Every column is a name, and `row` maps each column to its value, unless a column has this name. One newline at the
    template's end is dropped. The filter `tojson` writes plain JSON, without escapes for HTML. A null is printed as
    JSON only; anywhere else it is an error, unless the template handles it with `if` or `or`.

    Raises:
        ConfigurationError: a syntax error; the message names the line.
    """

    def __init__(self, source: str) -> None:
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._names = meta.find_undeclared_variables(tree) - environment.globals.keys()
            self._subscripts = {node.arg.value for node in _row_subscripts(tree)}
            self._reads_all = _num_loads(tree, ROW) > sum(1 for _ in _row_subscripts(tree))
            self._guarded = {node.node.name for node in _guards(tree)}
            self._template = environment.from_string(_with_checked_concatenations(tree))
        except TemplateSyntaxError as error:
            raise ConfigurationError(f"template, line {error.lineno}: {error.message}") from error
        except (
            SyntaxError,
            ValueError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise ConfigurationError(f"template: Python cannot compile it: {error or type(error).__name__}") from error

    def columns(self, known: Sequence[str]) -> list[str]:
        """The columns of an input that the template reads, in the input's order.

        Args:
            known: the names of all columns.

        Raises:
            ConfigurationError: the template names a column that the input lacks, and does not handle its absence with
                `is defined` or `default`. One line for each.
        """
        has_mapping = ROW in self._names and ROW not in known  # else the template or a column gives the name a meaning
        named = (self._names - {ROW}) | self._subscripts if has_mapping else self._names
        if missing := sorted(named - {*known} - self._guarded):
            lines = (f"the input has no column {name!r}{did_you_mean(name, known)}" for name in missing)
            raise ConfigurationError("\n".join(f"input.template: {line}" for line in lines))
        reads_all = has_mapping and self._reads_all
        return [name for name in known if reads_all or name in named]

    def render(self, columns: Mapping[str, Any]) -> str:
        """The prompt of one row.

        Args:
            columns: values by column name.

        Raises:
            RowError: code "template_error": an unknown column, a null that is printed, an operation that fails, or one
                that the sandbox forbids.
        """
        try:
            return self._template.render({ROW: columns, **columns})
        except _NullPrinted:
            nulls = ", ".join(name for name, value in columns.items() if value is None) or "inside a column"
            message = f"template: a null is printed (null in this row: {nulls}); write {{{{ name or '' }}}}, or use if"
            raise RowError("template_error", message) from None
        except (TemplateError, *_PROGRAM_ERRORS) as error:
            message = f"template: {type(error).__name__}: {error} (columns: {', '.join(columns) or 'none'})"
            raise RowError("template_error", message) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, finalize=_printed)
    for name in _TEXT_FILTERS:
        environment.filters[name] = _without_nulls(environment.filters[name])
    environment.filters["join"] = _join_without_nulls(environment.filters["join"])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.filters["_printed"] = _printed
    return environment


def _printed(value: Any) -> Any:
    """Returns a value that becomes text; raises _NullPrinted for a null."""
    if value is None:
        raise _NullPrinted
    return value


def _without_nulls(text_filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that raises _NullPrinted where the value or an argument is a null."""

    @wraps(text_filter)
    def checked(*arguments: Any, **named: Any) -> Any:
        if any(argument is None for argument in arguments):
            raise _NullPrinted
        return text_filter(*arguments, **named)

    return checked


def _join_without_nulls(join: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `join`, which raises _NullPrinted for a null among the items."""

    @wraps(join)
    def checked(context: Any, value: Any, *arguments: Any, **named: Any) -> Any:
        return join(context, [_printed(item) for item in value], *arguments, **named)

    return checked


def _with_checked_concatenations(tree: nodes.Template) -> nodes.Template:
    """Changes the tree so that the operator ~ raises _NullPrinted for a null. Returns the tree."""
    for concatenation in tree.find_all(nodes.Concat):
        concatenation.nodes = [
            nodes.Filter(part, "_printed", [], [], None, None, lineno=part.lineno, environment=part.environment)
            for part in concatenation.nodes
        ]
    return tree


def _row_subscripts(tree: nodes.Template) -> Iterator[Any]:
    """Yields the subscripts of `row` with a constant text, as in row["Question Text"]."""
    for node in tree.find_all(nodes.Getitem):
        is_of_row = isinstance(node.node, nodes.Name) and node.node.name == ROW
        if is_of_row and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            yield node


def _num_loads(tree: nodes.Template, name: str) -> int:
    return sum(node.name == name and node.ctx == "load" for node in tree.find_all(nodes.Name))


def _guards(tree: nodes.Template) -> Iterator[Any]:
    """Yields the tests and filters that handle the absence of a name."""
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name):
            yield node
