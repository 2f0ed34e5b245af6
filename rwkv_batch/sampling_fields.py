"""The kinds of values that fields of `SamplingParams` take, and how a field is declared.

A field is declared in one place, its line in `SamplingParams`. Its check, the job file's message, the columns of an
input and OpenAI's batch format follow from the kind.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which has no encoding."""


class Kind(ABC):
    """A set of values."""

    @abstractmethod
    def expected(self, value: object) -> str | None:
        """Returns None where the value is right; otherwise the end of the sentence "got X, expected …"."""

    def kept(self, value: Any) -> Any:
        """The form in which a right value is kept: a list or a mapping is copied."""
        return value

    @property
    def description(self) -> str:
        """The values in words."""
        return self.expected(_NOTHING) or ""


_NOTHING = object()
"""A value of no kind: what was expected in its place describes the kind."""


@dataclass(frozen=True)
class Integer(Kind):
    """An integer from `low` to `high`, both included."""

    low: int
    high: int

    def expected(self, value: object) -> str | None:
        is_right = isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
        return None if is_right else f"an integer from {self.low} to {self.high}"


@dataclass(frozen=True)
class MostLikely(Integer):
    """A number of most likely tokens, up to `high`; -1 is all, and True is 1, as in vLLM."""

    def expected(self, value: object) -> str | None:
        return None if value is True else super().expected(value)

    def kept(self, value: Any) -> Any:
        return self.high if value == -1 else int(value)


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from `low` to `high`, both included; above `low` where `is_open`."""

    low: float
    high: float
    is_open: bool = False

    def expected(self, value: object) -> str | None:
        is_open, low, high = self.is_open, self.low, self.high
        if _is_number(value) and low <= value <= high and (value > low or not is_open):
            return None
        return f"a number {'above' if is_open else 'from'} {low:g} {'up ' * is_open}to {high:g}"


class Flag(Kind):
    """True or False."""

    def expected(self, value: object) -> str | None:
        return None if isinstance(value, bool) else "true or false"


@dataclass(frozen=True)
class Choice(Kind):
    """One of some names."""

    names: tuple[str, ...]

    def expected(self, value: object) -> str | None:
        is_right = isinstance(value, str) and value in self.names
        return None if is_right else " or ".join(map(repr, self.names))


class Text(Kind):
    """A string."""

    def expected(self, value: object) -> str | None:
        return None if isinstance(value, str) else "text, or None"


class Schema(Kind):
    """A JSON schema: a string, a mapping, or a class of pydantic, which has one."""

    def expected(self, value: object) -> str | None:
        is_right = isinstance(value, str | Mapping) or _has_schema(value)
        return None if is_right else "a schema as text or as a mapping, or None"

    def kept(self, value: Any) -> Any:
        return value.model_json_schema() if _has_schema(value) else value


class Containers(Kind):
    """Values that may be lists or mappings."""


class Strings(Containers):
    """A non-empty string, or a list of such."""

    def expected(self, value: object) -> str | None:
        for text in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(text, str) or not text:
                return "a non-empty string or a list of non-empty strings"
            if SURROGATE.search(text):
                return "text that has an encoding, without lone surrogates"
        return None

    def kept(self, value: Any) -> Any:
        return list(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class TokenIds(Containers):
    """A list of token ids.

    Args:
        may_be_empty: an empty list is right too.
    """

    may_be_empty: bool = True

    def expected(self, value: object) -> str | None:
        if not isinstance(value, list | tuple) or not all(map(_is_id, value)):
            return "a list of token ids (integers from 0)"
        return None if value or self.may_be_empty else "at least one token id, or None for all"

    def kept(self, value: Any) -> Any:
        return list(value) if isinstance(value, list) else value


class Biases(Containers):
    """A mapping from token id to a number that float32 can hold."""

    def expected(self, value: object) -> str | None:
        is_right = isinstance(value, Mapping) and all(
            _is_id(token_id) and _is_number(bias) and abs(bias) <= _LARGEST_FLOAT for token_id, bias in value.items()
        )
        return None if is_right else "a map from token id to a finite number (float32)"

    def kept(self, value: Any) -> Any:
        return dict(value)


_LARGEST_FLOAT = 3.4028234663852886e38
"""The largest number of float32."""


@dataclass(frozen=True)
class SamplingField:
    """One field of `SamplingParams`.

    Args:
        kind: of its values.
        is_optional: None is right too.
        openai: its names in the body of a request in OpenAI's batch format; none where that has no such field.
        in_jobs: a job file and the rows of its input may set it.
    """

    kind: Kind
    is_optional: bool = False
    openai: tuple[str, ...] = ()
    in_jobs: bool = True

    def expected(self, value: object) -> str | None:
        """Returns None where the value is right; otherwise the end of the sentence "got X, expected …"."""
        return None if value is None and self.is_optional else self.kind.expected(value)

    @property
    def description(self) -> str:
        """The values in words, as for a job file."""
        words = self.kind.description.removesuffix(", or None")
        return f"{words}, or null" if self.is_optional else words


def sampling_field(
    default: Any,
    kind: Kind,
    *,
    openai: tuple[str, ...] = (),
    in_jobs: bool = True,
    takes_none: bool = False,
) -> Any:
    """Declares a field of the dataclass `SamplingParams`. A field whose default is None takes None too."""
    found = SamplingField(kind, is_optional=takes_none or default is None, openai=openai, in_jobs=in_jobs)
    return field(default=default, metadata={SamplingField: found})


def plain(value: Any) -> Any:
    """The value in Python's own types.

    Numbers and arrays of numpy, torch and pandas become numbers and lists, also as items of a list, a tuple or a
    mapping. Any other value is returned as it is.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value] if any(hasattr(one, "tolist") for one in value) else value
    if isinstance(value, Mapping) and any(hasattr(one, "tolist") for pair in value.items() for one in pair):
        return {plain(key): plain(one) for key, one in value.items()}
    return value


def documented_arguments(documented: type) -> dict[str, str]:
    """Returns the texts under "Args:" of a class's docstring, by name. Names that share a text each get it."""
    text = inspect.getdoc(documented) or ""
    section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    entries = re.split(r"^    (\w[\w, ]*): ", section[1] if section else "", flags=re.MULTILINE)[1:]
    named = zip(entries[::2], entries[1::2], strict=True)
    return {name: " ".join(words.split()) for names, words in named for name in names.split(", ")}


def _has_schema(value: object) -> bool:
    return isinstance(value, type) and hasattr(value, "model_json_schema")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
