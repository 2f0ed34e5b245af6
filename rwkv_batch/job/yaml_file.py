"""YAML of job files: loaded safely, with variables, without repeated keys, and 1e-5 is a number."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from ..errors import ConfigurationError, looked_up

STDIN = "-"
"""The name of a job file that means standard input."""

_REFERENCE = re.compile(r"\$(\$?)\{(?:([A-Za-z_]\w*)(?:(:?[-?])([^{}]*))?\})?")
"""A reference to a variable; `$${`, which stands for the text `${`; or a `${` that begins neither."""
_FORMS = "${NAME}, ${NAME:-default} or ${NAME:?message}; the text ${ is written as $${"
# PyYAML checks little of what explicit tags such as !!int announce, and Python's parser has a limit on depth.
_INVALID = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def file_label(path: str | os.PathLike[str]) -> str:
    """The name of a job file in messages."""
    return "standard input" if path == STDIN else os.fspath(path)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Reads a YAML file, and puts in the values of the environment variables that it names.

    Args:
        path: the file; "-" is standard input.

    Raises:
        ConfigurationError: the file cannot be read or is not valid YAML, or a variable is not set; each line of the
            message begins with the path.
    """
    place = file_label(path)
    try:
        text = sys.stdin.read() if path == STDIN else _text(path)
    except OSError as error:
        raise ConfigurationError(f"{place}: {error.strerror}{looked_up(path)}; expected a job file in YAML") from error
    except ValueError as error:
        raise ConfigurationError(f"{place}: not a text file in UTF-8: {error}") from error
    references = _References(text, os.environ)
    try:
        content = _FileLoader(references, place).get_single_data()
    except _INVALID as error:
        raise ConfigurationError(f"{place}: not valid YAML: {_one_line(error)}") from error
    if references.problems:
        raise ConfigurationError("\n".join(f"{place}: {problem}" for problem in dict.fromkeys(references.problems)))
    return content


def parse_yaml(text: str) -> Any:
    """Reads a YAML value, as it may stand after a key.

    Raises:
        ConfigurationError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except _INVALID as error:
        raise ConfigurationError(f"not a YAML value: {_one_line(error)}") from error


def _text(path: str | os.PathLike[str]) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses repeated keys and keys that are no scalars."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key is a mapping or a list; quote text that begins with { or ["
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _References:
    """The references to variables in the text of a job file.

    The parser reads `hidden`, which has a mark in place of each reference, and values are put into parsed scalars. So
    a value is text, whatever characters it has, and references in comments do not count.

    Args:
        text: of the file.
        variables: name → value.

    Attributes:
        problems: a sentence for each reference without a value.
    """

    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._variables = variables
        self._found: list[re.Match[str]] = []
        # Characters of private use may stand in scalars of any kind. This one is not in the text.
        self._mark = next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in text)
        self._pattern = re.compile(f"{self._mark}([0-9]+){self._mark}")
        self.hidden = _REFERENCE.sub(self._hide, text)

    def replaced(self, scalar: str) -> str:
        """Returns a scalar of the hidden text with the values of its references."""
        return self._pattern.sub(lambda mark: self._value(self._found[int(mark[1])]), scalar)

    def _hide(self, reference: re.Match[str]) -> str:
        self._found.append(reference)
        return f"{self._mark}{len(self._found) - 1}{self._mark}"

    def _value(self, reference: re.Match[str]) -> str:
        """Returns the text that stands for a reference; "" where there is none, which is one of the problems."""
        escape, name, operator, argument = reference.groups()
        if escape:
            return reference[0][1:]
        if name is None:
            self.problems.append(f"found ${{ without a name and }}, expected {_FORMS}")
            return ""
        value = self._variables.get(name)
        if value is not None and (value or operator not in (":-", ":?")):
            return value
        if operator in ("-", ":-"):
            return str(argument)
        reason = f": {argument}" if argument else f"; set it, write ${{{name}:-default}}, or $${{{name}}} for this text"
        self.problems.append(f"the environment variable {name} is not set{reason}")
        return ""


class _FileLoader(_Loader):
    """A loader that replaces references to variables as Docker Compose does.

    A scalar without quotes has the type that it would have with the value in its place; one in quotes is text.
    """

    def __init__(self, references: _References, place: str) -> None:
        super().__init__(io.StringIO(references.hidden))
        self.name = place
        self._references = references

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        implicit = self.peek_event().implicit  # type: ignore[no-untyped-call]
        node = super().compose_scalar_node(anchor)
        value = self._references.replaced(node.value)
        if value != node.value:
            node.value = value
            if implicit[0]:
                node.tag = self.resolve(yaml.ScalarNode, value, implicit)  # type: ignore[no-untyped-call]
        return node


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
