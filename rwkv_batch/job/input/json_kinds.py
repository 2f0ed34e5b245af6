"""Kinds of JSON values: what a column of a JSON Lines file holds, and the Arrow type that holds it.

Each value has a kind. The kind of a column is the narrowest one that holds all its values unchanged; where there is
none, the column holds JSON text.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, TypeAlias

import pyarrow as pa

from ...errors import RowError
from ...text.messages import TEXT_FIELDS, plain_messages
from ..messages import shortened

MAX_COLUMN_DEPTH = 32
"""Lists and objects inside each other in a typed column. A Parquet file with three times as many cannot be read."""
MAX_FIELDS = 1000
"""Names in the objects of a typed column."""

EXACT = 2**53
"""All integers up to this one, with either sign, are float64 numbers too."""
LOWEST, HIGHEST, HIGHEST_UNSIGNED = -(2**63), 2**63 - 1, 2**64 - 1


def shown_json(value: Any) -> str:
    """A JSON value in an error message: a number, true, false or null itself, and of anything else its type."""
    types: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}
    return types.get(type(value)) or shortened(json.dumps(value))


class JsonKind(ABC):
    """A set of JSON values that one Arrow column can hold. Every kind has null in it.

    Args:
        words: the kind in an error message, such as "a string".
    """

    arrow: pa.DataType | cached_property[pa.DataType]
    """The Arrow type of a column of this kind."""

    def __init__(self, words: str) -> None:
        self.words = words

    @abstractmethod
    def has(self, value: Any) -> bool:
        """Whether a value other than None is of this kind, so that the Arrow column holds it unchanged."""

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        return value is None or self.has(value)

    def fault(self, where: str, value: Any) -> RowError:
        """What is wrong with a value that does not fit; `where` names the value."""
        return RowError("bad_type", f"{where}: got {shown_json(value)}, expected {self.words}")

    def for_arrow(self, value: Any) -> Any:
        """A value of this kind in the form that `pyarrow.array` takes."""
        return value


class Scalar(JsonKind):
    """Null, booleans, numbers or strings."""

    def __init__(self, arrow: pa.DataType, words: str, python_type: type) -> None:
        super().__init__(words)
        self.arrow = arrow
        self.python_type = python_type

    def has(self, value: Any) -> bool:
        if self.python_type is float and type(value) is int:
            return abs(value) <= EXACT
        return type(value) is self.python_type


class Integers(JsonKind):
    """The integers from `low` to `high`, also where they are written with a fraction of zero."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__("an integer of at most 64 bits")
        self.low, self.high = low, high
        self.arrow = pa.int64() if high <= HIGHEST else pa.uint64()

    def has(self, value: Any) -> bool:
        is_integer = type(value) is int or (type(value) is float and value.is_integer())
        return is_integer and self.low <= value <= self.high

    def for_arrow(self, value: Any) -> Any:
        return int(value) if type(value) is float else value


NULL = Scalar(pa.null(), "null", type(None))
BOOLEAN = Scalar(pa.bool_(), "true or false", bool)
NUMBER = Scalar(pa.float64(), "a number", float)
STRING = Scalar(pa.string(), "a string", str)
INTEGER = Integers(LOWEST, HIGHEST)
_SCALARS = {kind.python_type: kind for kind in (NULL, BOOLEAN, NUMBER, STRING)}


class ListOf(JsonKind):
    """Lists of values of one kind."""

    def __init__(self, item: JsonKind) -> None:
        super().__init__(f"a list, each item {item.words}")
        self.item = item

    @cached_property
    def arrow(self) -> pa.DataType:
        return pa.list_(self.item.arrow)

    def has(self, value: Any) -> bool:
        return isinstance(value, list) and all(map(self.item.fits, value))

    def fault(self, where: str, value: Any) -> RowError:
        if not isinstance(value, list):
            return super().fault(where, value)
        index, item = next((index, item) for index, item in enumerate(value) if not self.item.fits(item))
        return self.item.fault(f"{where}[{index}]", item)

    def for_arrow(self, value: Any) -> Any:
        return None if value is None else [self.item.for_arrow(item) for item in value]


class Struct(JsonKind):
    """Objects with some names. An object may lack names; names that the kind lacks are not read."""

    def __init__(self, fields: Mapping[str, JsonKind]) -> None:
        super().__init__("an object")
        self.fields = fields

    @cached_property
    def arrow(self) -> pa.DataType:
        return pa.struct([(name, kind.arrow) for name, kind in self.fields.items()])

    def has(self, value: Any) -> bool:
        return isinstance(value, dict) and all(kind.fits(value.get(name)) for name, kind in self.fields.items())

    def fault(self, where: str, value: Any) -> RowError:
        if not isinstance(value, dict):
            return super().fault(where, value)
        name, kind = next((name, kind) for name, kind in self.fields.items() if not kind.fits(value.get(name)))
        return kind.fault(f"{where}.{name}", value[name])

    def for_arrow(self, value: Any) -> Any:
        return None if value is None else {name: kind.for_arrow(value.get(name)) for name, kind in self.fields.items()}


class Strings(JsonKind):
    """A string or a list of strings; in Arrow always a list."""

    arrow = pa.list_(pa.string())

    def __init__(self) -> None:
        super().__init__("a string or a list of strings")

    def has(self, value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, list) and all(map(STRING.fits, value)))

    def for_arrow(self, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class NumbersByName(JsonKind):
    """Objects whose values are all numbers; in Arrow a map."""

    arrow = pa.map_(pa.string(), pa.float64())

    def __init__(self) -> None:
        super().__init__("an object of numbers")

    def has(self, value: Any) -> bool:
        return isinstance(value, dict) and all(map(NUMBER.fits, value.values()))

    def fault(self, where: str, value: Any) -> RowError:
        if not isinstance(value, dict):
            return super().fault(where, value)
        name, item = next((name, item) for name, item in value.items() if not NUMBER.fits(item))
        return NUMBER.fault(f"{where}.{name}", item)

    def for_arrow(self, value: Any) -> Any:
        return None if value is None else list(value.items())


class Messages(JsonKind):
    """Conversations in any form that `plain_messages` takes; in Arrow a list of messages of plain text.

    Args:
        fields: of a message, all text; `tool_calls` is JSON text.
        only_texts: messages are read as by a version without tools.
    """

    def __init__(self, *fields: str, only_texts: bool = False) -> None:
        super().__init__("a list of messages")
        self.fields = fields
        self.only_texts = only_texts
        self.arrow = pa.list_(pa.struct([(field, pa.string()) for field in fields]))

    def has(self, value: Any) -> bool:
        return self._error(value) is None

    def fault(self, where: str, value: Any) -> RowError:
        return self._error(value) or super().fault(where, value)

    def for_arrow(self, value: Any) -> Any:
        return None if value is None else [self._message(one) for one in plain_messages(value, self.only_texts)]

    def _message(self, message: dict[str, Any]) -> dict[str, str | None]:
        calls = message.get("tool_calls")
        texts = {**message, "tool_calls": json.dumps(calls, ensure_ascii=False) if calls else None}
        return {field: texts.get(field) for field in self.fields}

    def _error(self, value: Any) -> RowError | None:
        try:
            plain_messages(value, self.only_texts)
        except RowError as error:
            return error
        return None


class JsonText(JsonKind):
    """All values; in Arrow their JSON text."""

    arrow = pa.string()

    def __init__(self) -> None:
        super().__init__("any JSON value")

    def has(self, value: Any) -> bool:
        return True

    def for_arrow(self, value: Any) -> Any:
        return None if value is None else json.dumps(value, ensure_ascii=False)


class SchemaText(JsonKind):
    """A JSON schema: an object, or its text; in Arrow always the text."""

    arrow = pa.string()

    def __init__(self) -> None:
        super().__init__("a JSON schema, as an object or as text")

    def has(self, value: Any) -> bool:
        return isinstance(value, dict) or STRING.has(value)

    def for_arrow(self, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value


class OpenMessages(Messages):
    """Conversations: of role and content alone, or with all fields, as the values of a column have them."""

    def kind_of(self, value: Any) -> Messages:
        """The narrowest of the two kinds that has a value."""
        messages = () if self._error(value) or value is None else plain_messages(value)
        return ALL_MESSAGES if any(len(message) > len(self.fields) for message in messages) else self


STRINGS, NUMBERS_BY_NAME, JSON_TEXT, SCHEMA_TEXT = Strings(), NumbersByName(), JsonText(), SchemaText()
PLAIN_MESSAGES = Messages("role", "content", only_texts=True)
"""For jobs that a version without tools has begun."""
ALL_MESSAGES = Messages("role", "content", "tool_calls", *TEXT_FIELDS)
MESSAGES = OpenMessages("role", "content")

Expected: TypeAlias = JsonKind | tuple[JsonKind, ...]
"""The kind that a column must have; of several, the first one that has a value of the column."""


def widen(kind: JsonKind, value: Any, wanted: JsonKind | None = None) -> JsonKind:
    """Returns the narrowest kind that has the values of `kind` and `value`.

    Args:
        wanted: what values must be. The result has nothing else in it, whatever the value is.
    """
    if isinstance(wanted, OpenMessages):
        return join(kind, wanted.kind_of(value))
    if wanted is INTEGER:
        return _widen_integers(kind, value)
    if isinstance(wanted, Struct):
        return _widen_struct(kind, value, wanted.fields) if isinstance(value, dict) else kind
    return wanted or (kind if kind is JSON_TEXT else join(kind, kind_of(value)))


def kind_of(value: Any) -> JsonKind:
    """Returns the narrowest kind that has a value."""
    if type(value) is int:
        return _integers(0 if value >= 0 else value, value)
    if isinstance(value, list):
        item: JsonKind = NULL
        for one in value:
            item = join(item, kind_of(one))
        return ListOf(item)
    if isinstance(value, dict):
        return Struct({name: kind_of(item) for name, item in value.items()})
    return _SCALARS[type(value)]


def join(kind: JsonKind, other: JsonKind) -> JsonKind:
    """Returns the narrowest kind that has the values of both."""
    if kind is other or other is NULL:
        return kind
    if kind is NULL:
        return other
    if isinstance(kind, Integers) and isinstance(other, Integers):
        return _integers(min(kind.low, other.low), max(kind.high, other.high))
    if isinstance(kind, Messages) and isinstance(other, Messages):
        return max(kind, other, key=lambda one: len(one.fields))
    if isinstance(kind, ListOf) and isinstance(other, ListOf):
        item = join(kind.item, other.item)
        return kind if item is kind.item else ListOf(item)
    if isinstance(kind, Struct) and isinstance(other, Struct):
        found = {name: join(kind.fields.get(name, NULL), field) for name, field in other.fields.items()}
        if all(kind.fields.get(name) is field for name, field in found.items()):
            return kind
        fields = {**kind.fields, **found}
        return Struct(fields) if len(fields) <= MAX_FIELDS else JSON_TEXT
    numbers = {kind, other} - {NUMBER}
    is_exact = all(isinstance(one, Integers) and max(-one.low, one.high) <= EXACT for one in numbers)
    return NUMBER if is_exact else JSON_TEXT


def settled(kind: JsonKind) -> JsonKind:
    """Returns the kind itself, or JSON text where no column of a Parquet file holds its values."""
    return kind if _is_plain(kind, MAX_COLUMN_DEPTH) else JSON_TEXT


def _is_plain(kind: JsonKind, depth: int) -> bool:
    """Whether a column of Parquet holds the values of a kind: at most `depth` lists and objects inside each other."""
    if isinstance(kind, ListOf):
        return depth > 0 and _is_plain(kind.item, depth - 1)
    if isinstance(kind, Struct):
        is_narrow = 0 < len(kind.fields) <= MAX_FIELDS  # Parquet has no objects without names
        return depth > 0 and is_narrow and all(_is_plain(field, depth - 1) for field in kind.fields.values())
    return kind is not JSON_TEXT


def _widen_integers(kind: JsonKind, value: Any) -> JsonKind:
    """The integers that the values so far, and this one, are among. Values that do not go with those so far are not."""
    known = kind if isinstance(kind, Integers) else _integers(0, 0)
    if type(value) is not int:
        return known
    joined = join(known, kind_of(value))
    return joined if isinstance(joined, Integers) else known


def _widen_struct(kind: JsonKind, value: dict[str, Any], wanted: Mapping[str, JsonKind]) -> JsonKind:
    """An object's names so far, each of the kind that is wanted for it."""
    known = kind.fields if isinstance(kind, Struct) else {}
    found = {name: widen(known.get(name, NULL), item, wanted.get(name)) for name, item in value.items()}
    is_known = all(known.get(name) is item for name, item in found.items())
    return kind if is_known and isinstance(kind, Struct) else Struct({**known, **found})


def _integers(low: int, high: int) -> JsonKind:
    """The kind of integers between two; JSON text where no Arrow type has all of them.

    There are few such kinds, so that a column's kind rarely changes.
    """
    if low >= 0 and HIGHEST < high <= HIGHEST_UNSIGNED:
        return _range(0, HIGHEST_UNSIGNED)
    if low < LOWEST or high > HIGHEST:
        return JSON_TEXT
    wider_low = 0 if low >= 0 else -EXACT if low >= -EXACT else LOWEST
    return _range(wider_low, EXACT if high <= EXACT else HIGHEST)


@cache
def _range(low: int, high: int) -> Integers:
    return Integers(low, high)
