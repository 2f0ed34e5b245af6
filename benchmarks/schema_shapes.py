"""JSON schemas of the shapes that public collections have, made from a seed, each with values that satisfy it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "naïve",
    "中文",
    "Ünï",
    "code",
    '"quoted"',
    "new\nline",
    "tab\tend",
    "😀",
    "back\\slash",
]
NAMES = ["name", "id", "title", "tags", "count", "price", "items", "owner", "address", "state", "kind", "notes", "url"]


class Shape(NamedTuple):
    """A schema, and what makes a value of it."""

    schema: dict[str, Any]
    value: Callable[[], Any]


class Maker:
    """Makes shapes. Equal seeds make equal shapes."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._kinds = [self.text, self.text, self.limited, self.number, self.enum, self.pattern, self.form, self.flag]
        self._nested = [*self._kinds, self.record, self.record, self.array, self.array, self.option, self.tagged]

    def schemas(self, number: int) -> Iterator[Shape]:
        """`number` schemas of whole documents: records, lists, trees, and schemas that build on definitions."""
        documents = [self.record, self.record, self.record, self.array, self.tree, self.definitions, self.merged]
        for _ in range(number):
            yield self._dice.choice(documents)(0)

    def _words(self, least: int, most: int) -> str:
        return " ".join(self._dice.choice(WORDS) for _ in range(self._dice.randint(least, most)))

    def _member(self, depth: int) -> Shape:
        return self._dice.choice(self._nested if depth < 3 else self._kinds)(depth + 1)

    def text(self, _: int) -> Shape:
        return Shape({"type": "string", "description": "any text"}, lambda: self._words(0, 6))

    def limited(self, _: int) -> Shape:
        limits = self._dice.choice([{"minLength": 1}, {"minLength": 1, "maxLength": 200}, {"maxLength": 2000}])
        return Shape({"type": "string", **limits}, lambda: self._words(1, 8))

    def number(self, _: int) -> Shape:
        if self._dice.random() < 0.5:
            low, high = self._dice.choice([(0, 100), (1, 65535), (-90, 90)])
            return Shape({"type": "integer", "minimum": low, "maximum": high}, lambda: self._dice.randint(low, high))
        return Shape({"type": "number", "minimum": 0}, lambda: self._dice.randint(0, 99999) + 0.25)

    def flag(self, _: int) -> Shape:
        return Shape({"type": ["boolean", "null"]}, lambda: self._dice.choice([True, False, None]))

    def enum(self, _: int) -> Shape:
        values = [f"{self._dice.choice(WORDS)} {i}" for i in range(self._dice.choice([3, 10, 100]))]
        return Shape({"enum": values}, lambda: self._dice.choice(values))

    def pattern(self, _: int) -> Shape:
        if self._dice.random() < 0.5:
            return Shape(
                {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, lambda: f"AB-{self._dice.randint(1000, 9999)}"
            )
        limits = {"pattern": "^[a-z0-9_-]+$", "minLength": 2, "maxLength": 32}
        return Shape({"type": "string", **limits}, lambda: f"item_{self._dice.randint(0, 99)}")

    def form(self, _: int) -> Shape:
        name, example = self._dice.choice(
            [
                ("date", "2024-02-29"),
                ("date-time", "2024-02-29T10:00:00Z"),
                ("email", "a.b@example.org"),
                ("uri", "https://a.org/b"),
            ]
        )
        return Shape({"type": "string", "format": name}, lambda: example)

    def record(self, depth: int) -> Shape:
        names = self._dice.sample(NAMES, self._dice.randint(2, 8))
        members = {name: self._member(depth) for name in names}
        required = [name for name in names if self._dice.random() < 0.6]
        properties = {name: member.schema for name, member in members.items()}
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        if self._dice.random() < 0.7:
            schema["additionalProperties"] = False
        return Shape(
            schema,
            lambda: {n: m.value() for n, m in members.items() if n in required or self._dice.random() < 0.5},
        )

    def array(self, depth: int) -> Shape:
        item, limits = self._member(depth), self._dice.choice([{}, {"minItems": 1}, {"minItems": 1, "maxItems": 10}])
        return Shape(
            {"type": "array", "items": item.schema, **limits},
            lambda: [item.value() for _ in range(self._dice.randint(1, 3))],
        )

    def option(self, depth: int) -> Shape:
        one = self._member(depth)
        return Shape(
            {"anyOf": [one.schema, {"type": "null"}]}, lambda: one.value() if self._dice.random() < 0.7 else None
        )

    def tagged(self, depth: int) -> Shape:
        """`oneOf` of records that a property tells apart."""
        shapes = []
        for kind in ("circle", "square"):
            member = self._member(depth)
            properties = {"kind": {"const": kind}, "data": member.schema}
            schema = {"type": "object", "properties": properties, "required": ["kind", "data"]}
            shapes.append((schema, kind, member))

        def value() -> Any:
            _, kind, member = self._dice.choice(shapes)
            return {"kind": kind, "data": member.value()}

        return Shape({"oneOf": [schema for schema, _, _ in shapes]}, value)

    def tree(self, depth: int) -> Shape:
        """A recursive schema."""
        member = self._member(depth)
        node = {
            "type": "object",
            "properties": {"value": member.schema, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value", "children"],
            "additionalProperties": False,
        }

        def value(left: int = 2) -> Any:
            return {"value": member.value(), "children": [value(left - 1) for _ in range(self._dice.randint(0, left))]}

        return Shape({"$ref": "#/$defs/node", "$defs": {"node": node}}, value)

    def definitions(self, depth: int) -> Shape:
        one, other = self.record(depth + 1), self.limited(depth)
        properties = {
            "first": {"$ref": "#/$defs/one"},
            "second": {"$ref": "#/$defs/one"},
            "label": {"$ref": "#/$defs/other"},
        }
        schema = {
            "type": "object",
            "properties": properties,
            "required": ["first", "label"],
            "additionalProperties": False,
        }
        return Shape(
            {**schema, "$defs": {"one": one.schema, "other": other.schema}},
            lambda: {"first": one.value(), "second": one.value(), "label": other.value()},
        )

    def merged(self, depth: int) -> Shape:
        """`allOf` of a definition and properties of its own."""
        base, own = self.limited(depth), self._member(depth)
        parts = [
            {"type": "object", "properties": {"base": base.schema}, "required": ["base"]},
            {"type": "object", "properties": {"own": own.schema}, "required": ["own"]},
        ]
        return Shape({"allOf": parts}, lambda: {"base": base.value(), "own": own.value()})
