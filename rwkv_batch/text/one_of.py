"""Whether the schemas of a `oneOf` exclude each other, so that it can be enforced as an `anyOf`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .schema_support import TYPES, implied_type, types_of

_MOST_NESTED = 4
"""Properties within properties that are looked at."""


@dataclass(frozen=True)
class Facts:
    """What is known of the values that a schema accepts, and of the texts that are made for it.

    Args:
        types: of accepted values; "integer" stands beside "number".
        text_types: of the texts.
        values: the only values that are accepted; None where they are not listed.
        properties: key → the schemas that its value must satisfy together.
        required: keys of each accepted object.
        keys: all keys that a text may have; None where others may come.
        is_closed: an accepted object has no keys beside those of `properties`.
        bounds: accepted numbers are from ... to ...
    """

    types: frozenset[str]
    text_types: frozenset[str]
    values: list[Any] | None
    properties: Mapping[str, list[Any]]
    required: frozenset[str]
    keys: frozenset[str] | None
    is_closed: bool
    bounds: tuple[float, float]

    @classmethod
    def of(cls, leaves: Sequence[Mapping[str, Any]], names: set[str], is_open: bool) -> Facts:
        """The facts of the leaves that a value satisfies together.

        Args:
            names: all keys that are named for the value.
            is_open: a text may have other keys.
        """
        types, text_types = set(TYPES), set(TYPES)
        values: list[Any] | None = None
        properties: dict[str, list[Any]] = {}
        required: set[str] = set()
        is_closed, low, high = False, -float("inf"), float("inf")
        has_type = any("type" in leaf or "const" in leaf or "enum" in leaf for leaf in leaves)
        for leaf in leaves:
            named = types_of(leaf)
            if named is not None:
                types &= {*named, *(["integer"] if "number" in named else [])}
            elif not has_type and (implied := implied_type(leaf)):
                text_types &= {implied, *(["integer"] if implied == "number" else [])}
            listed = leaf.get("enum", [leaf["const"]] if "const" in leaf else None)
            if isinstance(listed, list):
                values = listed if values is None else [value for value in values if _is_in(value, listed)]
            for name, child in _mapping(leaf.get("properties")).items():
                properties.setdefault(name, []).append(child)
            required.update(name for name in leaf.get("required", ()) if isinstance(name, str))
            is_closed |= leaf.get("additionalProperties") is False and not leaf.get("patternProperties")
            low = max([low, *(leaf[k] for k in ("minimum", "exclusiveMinimum") if _is_number(leaf.get(k)))])
            high = min([high, *(leaf[k] for k in ("maximum", "exclusiveMaximum") if _is_number(leaf.get(k)))])
        # Of two leaves, one closed, `properties` has keys of both: the closed one alone would have fewer.
        return cls(
            *(frozenset(types), frozenset(types & text_types), values, properties, frozenset(required)),
            *(None if is_open else frozenset(names), is_closed, (low, high)),
        )


def rejects(text: Facts, other: Facts, facts_of: Callable[[Any], Facts], nested: int = 0) -> bool:
    """Whether it is certain that the schema `other` rejects each text that is made for the schema `text`.

    Args:
        facts_of: the facts of the schema of a property.
        nested: properties within properties so far.
    """
    types = text.text_types if text.values is None else {_type(value) for value in text.values}
    if not types & other.types:
        return True
    if other.values is not None:
        if text.values is not None and not any(_is_in(value, other.values) for value in text.values):
            return True
        if not types & {_type(value) for value in other.values}:
            return True
    if text.values is not None:
        return False
    if types <= {"number", "integer"} and (text.bounds[1] < other.bounds[0] or other.bounds[1] < text.bounds[0]):
        return True
    if types != {"object"}:
        return False
    if text.keys is not None and other.required - text.keys:
        return True
    if other.is_closed and text.required - set(other.properties):
        return True
    if nested == _MOST_NESTED:
        return False
    return any(
        rejects(facts_of(mine), facts_of(theirs), facts_of, nested + 1)
        for name in text.required
        for mine in text.properties.get(name, [])
        for theirs in other.properties.get(name, [])
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _type(value: Any) -> str:
    """The type of a value, "integer" for every whole number."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "integer" if value == int(value) else "number"
    return "object" if isinstance(value, Mapping) else "array"


def _is_in(value: Any, values: Sequence[Any]) -> bool:
    """Whether JSON counts a value as one of others: 1 is 1.0, and not true."""
    return any(_equal(value, other) for other in values)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b
