"""Kinds of JSON values: what a column of a JSON Lines file holds, and the Arrow type that holds it.

The kind of a column is found by widening: it starts as `NULL`, and each value makes it the narrowest kind that holds
this value and all values before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import pyarrow as pa


class JsonKind(ABC):
    """A set of JSON values that one Arrow column can hold. Every kind has null in it.

    Args:
        arrow: the Arrow type of a column of this kind.
        words: the kind in an error message, such as "a string".
    """

    def __init__(self, arrow: pa.DataType, words: str) -> None:
        self.arrow = arrow
        self.words = words

    @abstractmethod
    def has(self, value: Any) -> bool:
        """Whether a value other than None is of this kind, so that the Arrow column holds it unchanged."""

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        return value is None or self.has(value)

    def misfit(self, where: str, value: Any) -> tuple[str, JsonKind]:
        """The place of the fault in a value that does not fit, and the kind that was expected there."""
        return where, self

    def for_arrow(self, value: Any) -> Any:
        """A value of this kind in the form that `pyarrow.array` takes."""
        return value


class Scalar(JsonKind):
    """Null, booleans, integers, numbers or strings."""

    def __init__(self, arrow: pa.DataType, words: str, python_type: type) -> None:
        super().__init__(arrow, words)
        self.python_type = python_type

    def has(self, value: Any) -> bool:
        if self.python_type is float and type(value) is int:
            return abs(value) <= 2**53
        return type(value) is self.python_type and (type(value) is not int or -(2**63) <= value < 2**63)


NULL = Scalar(pa.null(), "null", type(None))
BOOLEAN = Scalar(pa.bool_(), "true or false", bool)
INTEGER = Scalar(pa.int64(), "an integer", int)
NUMBER = Scalar(pa.float64(), "a number", float)
STRING = Scalar(pa.string(), "a string", str)
_SCALARS = {kind.python_type: kind for kind in (BOOLEAN, INTEGER, NUMBER, STRING)}


class ListOf(JsonKind):
    """Lists of values of one kind."""

    def __init__(self, item: JsonKind) -> None:
        super().__init__(pa.list_(item.arrow), f"a list of {item.words}")
        self.item = item

    def has(self, value: Any) -> bool:
        return isinstance(value, list) and all(map(self.item.fits, value))


class Struct(JsonKind):
    """Objects with some names. An object may lack names; names that the kind lacks are not read."""

    def __init__(self, fields: Mapping[str, JsonKind]) -> None:
        super().__init__(pa.struct([(name, kind.arrow) for name, kind in fields.items()]), "an object")
        self.fields = fields

    def has(self, value: Any) -> bool:
        return isinstance(value, dict) and all(kind.fits(value.get(name)) for name, kind in self.fields.items())

    def misfit(self, where: str, value: Any) -> tuple[str, JsonKind]:
        if not isinstance(value, dict):
            return where, self
        name, kind = next((name, kind) for name, kind in self.fields.items() if not kind.fits(value.get(name)))
        return kind.misfit(f"{where}.{name}", value[name])

    def for_arrow(self, value: Any) -> Any:
        return value and {name: kind.for_arrow(value.get(name)) for name, kind in self.fields.items()}


class Strings(JsonKind):
    """A string or a list of strings; in Arrow always a list."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.string()), "a string or a list of strings")

    def has(self, value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, list) and all(map(STRING.fits, value)))

    def for_arrow(self, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class NumbersByName(JsonKind):
    """Objects whose values are all numbers; in Arrow a map."""

    def __init__(self) -> None:
        super().__init__(pa.map_(pa.string(), pa.float64()), "an object of numbers")

    def has(self, value: Any) -> bool:
        return isinstance(value, dict) and all(map(NUMBER.fits, value.values()))

    def for_arrow(self, value: Any) -> Any:
        return value and list(value.items())


STRINGS, NUMBERS_BY_NAME = Strings(), NumbersByName()

Expected: TypeAlias = JsonKind | tuple[JsonKind, ...]
"""The kind that a column must have; of several, the first one that has a value of the column."""


def widen(kind: JsonKind, value: Any, wanted: JsonKind | None = None) -> JsonKind:
    """The narrowest kind that has the values of `kind` and `value`.

    Args:
        wanted: the result, whatever the value is. Of an object, the names that have come so far, each of the kind that
            is wanted for it.

    Raises:
        TypeError: there is no such kind.
    """
    if isinstance(wanted, Struct):
        return _widen_struct(kind, value, wanted.fields) if isinstance(value, dict) else kind
    if wanted is not None:
        return wanted
    if value is None:
        return kind
    if isinstance(value, dict) and (kind is NULL or isinstance(kind, Struct)):
        return _widen_struct(kind, value, {})
    if isinstance(value, list) and (kind is NULL or isinstance(kind, ListOf)):
        item = kind.item if isinstance(kind, ListOf) else NULL
        for one in value:
            item = widen(item, one)
        return kind if isinstance(kind, ListOf) and item is kind.item else ListOf(item)
    found = _SCALARS.get(type(value))
    if found is INTEGER and not INTEGER.has(value):
        raise TypeError("got an integer beyond 64 bits; write it as a string")
    if found is not None and kind in (NULL, found):
        return found
    if found in (INTEGER, NUMBER) and kind in (INTEGER, NUMBER):
        return NUMBER
    raise TypeError(f"got {widen(NULL, value).words} here and {kind.words} above, expected one type")


def _widen_struct(kind: JsonKind, value: dict[str, Any], wanted: Mapping[str, JsonKind]) -> JsonKind:
    known = kind.fields if isinstance(kind, Struct) else {}
    found = {name: widen(known.get(name, NULL), item, wanted.get(name)) for name, item in value.items()}
    is_known = all(known.get(name) is item for name, item in found.items())
    return kind if is_known and known else Struct({**known, **found})
