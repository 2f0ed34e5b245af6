"""Prompts from columns: Jinja templates, which see the columns of a row as names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial, wraps
from typing import Any
from uuid import UUID

from jinja2 import (
    Environment,
    StrictUndefined,
    TemplateError,
    Undefined,
    meta,
    nodes,
    pass_eval_context,
)
from jinja2.nodes import EvalContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...errors import ConfigurationError, RowError
from ...text.templates import PROGRAM_ERRORS, compiling
from ..messages import did_you_mean

ROW = "row"
"""The name of the mapping from column to value, for columns whose name is no identifier: row["Question Text"]."""

_TEXT_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "pprint", "replace"),
    *("string", "striptags", "title", "trim", "truncate", "upper", "urlencode", "urlize", "wordcount", "wordwrap"),
    "xmlattr",
)
"""Jinja's filters that would turn any value into text."""
_CLOCKS = ("now", "today", "utcnow")
"""The methods of dates that read the clock."""
_PLAIN = (str, int, float, bool, Decimal, date, time, timedelta, UUID)
"""The types of the values that become text."""
_HINTS = {
    "bytes": "write .decode()",
    "generator": "write | list",
    "builtin_function_or_method": "write () behind the name",
    "method": "write () behind the name",
}
"""Name of a type that does not become text → what to do."""


class _NullPrinted(Exception):
    """A null would become text."""


class _NotPrintable(Exception):
    """A value that is no data would become text."""


class Template:
    """A Jinja template, compiled once and run in Jinja's sandbox for each row.

    Every column is a name, and `row` maps each column to its value, unless a column has this name. One newline at the
    template's end is dropped. The filter `tojson` writes plain JSON, without escapes for HTML. A null is printed as
    JSON only; anywhere else it is an error, unless the template handles it with `if` or `or`. What is printed is text,
    numbers, booleans, times, and lists and mappings of these.

    Args:
        source: the template.
        setting: the setting that has it, for messages.

    Raises:
        ConfigurationError: a syntax error, or a filter or function that draws at random; the message names the line.
    """

    def __init__(self, source: str, setting: str = "input.template") -> None:
        self._setting = setting
        self._name = name = setting.rpartition(".")[2]
        environment = _environment()
        with compiling(name):
            tree = environment.parse(source)
            _refuse_chance(tree, name)
            self._names = meta.find_undeclared_variables(tree) - environment.globals.keys()
            self._subscripts = {node.arg.value for node in _row_subscripts(tree)}
            self._reads_all = _num_loads(tree, ROW) > sum(1 for _ in _row_subscripts(tree))
            self._guarded = {node.node.name for node in _guards(tree)}
            self._template = environment.from_string(_with_checked_concatenations(tree))
            self._globals = {**self._template.globals}

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
            raise ConfigurationError("\n".join(f"{self._setting}: {line}" for line in lines))
        reads_all = has_mapping and self._reads_all
        return [name for name in known if reads_all or name in named]

    def render(self, columns: Mapping[str, Any]) -> str:
        """The prompt of one row.

        Args:
            columns: values by column name.

        Raises:
            RowError: code "template_error": an unknown column, a null or an object that is printed, an operation that
                fails, or one that the sandbox forbids.
        """
        try:
            # As `Template.render`, which would merge the globals name by name for each row.
            context = self._template.new_context({**self._globals, ROW: columns, **columns}, shared=True)
            return "".join(self._template.root_render_func(context))
        except _NullPrinted:
            nulls = ", ".join(name for name, value in columns.items() if value is None) or "inside a column"
            message = (
                f"{self._name}: a null is printed (null in this row: {nulls}); write {{{{ name or '' }}}}, or use if"
            )
            raise RowError("template_error", message) from None
        except _NotPrintable as error:
            raise RowError("template_error", f"{self._name}: {error}") from None
        except (TemplateError, *PROGRAM_ERRORS) as error:
            message = f"{self._name}: {type(error).__name__}: {error} (columns: {', '.join(columns) or 'none'})"
            raise RowError("template_error", message) from error


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which only data becomes text, and nothing reads the clock."""

    intercepted_binops = frozenset(["%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            _printed(right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else _checked(wrapped, checks_named=True)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        reads_clock = attr in _CLOCKS and isinstance(obj, date)
        return not reads_clock and super().is_safe_attribute(obj, attr, value)


def _environment() -> _Environment:
    # Without the optimizer, expressions of constants are computed for each row, within the limits of a row.
    environment = _Environment(undefined=StrictUndefined, finalize=_finalized, optimized=False)
    for name in _TEXT_FILTERS:
        environment.filters[name] = _checked(environment.filters[name], checks_named=name == "format")
    environment.filters["join"] = _join_without_nulls(environment.filters["join"])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.filters["_printed"] = _printed
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


@pass_eval_context  # so that Jinja does not print constants when it compiles
def _finalized(_: EvalContext, value: Any) -> Any:
    return _printed(value)


def _printed(value: Any) -> Any:
    """Returns a value that becomes text. Raises _NullPrinted for a null and _NotPrintable for what is no data."""
    if isinstance(value, _PLAIN):
        return value
    if value is None:
        raise _NullPrinted
    if isinstance(value, (list, tuple)):
        for item in value:
            _printed(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _printed(name)
            _printed(item)
    elif isinstance(value, Undefined):
        str(value)  # raises the error that names it
    else:
        kind = type(value).__name__
        hint = f"; {_HINTS[kind]}" if kind in _HINTS else ""
        raise _NotPrintable(f"an object of type {kind} is printed, expected text, a number, a list or a mapping{hint}")
    return value


def _checked(function: Callable[..., Any], checks_named: bool = False) -> Callable[..., Any]:
    """A filter or a method that first passes the value and its arguments, perhaps named ones, to `_printed`."""

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        for argument in (*arguments, *(named.values() if checks_named else ())):
            if not isinstance(argument, (EvalContext, Environment)):
                _printed(argument)
        return function(*arguments, **named)

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


def _refuse_chance(tree: nodes.Template, template: str) -> None:
    """Raises ConfigurationError where a template draws at random."""
    draws: list[tuple[str, Any]] = [("random", node) for node in tree.find_all(nodes.Filter)]
    draws += [("lipsum", node) for node in tree.find_all(nodes.Name)]
    for name, node in draws:
        if node.name == name:
            reason = "draws at random, and a job that is started again would give other prompts"
            raise ConfigurationError(f"{template}, line {node.lineno}: {name!r} {reason}; leave it out")


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
