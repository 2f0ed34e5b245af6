"""Refuses JSON schemas with keywords that xgrammar would ignore: every constrained text satisfies its schema.

The tables are for xgrammar 0.2.8, found by sampling from its grammars. `oneOf` is enforced as `anyOf`. `format`
constrains only the form of a string: "2023-02-31" is a date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NOT_ENFORCED = ("not", "if", "contains", "uniqueItems", "dependentRequired", "dependentSchemas", "dependencies")
# Where a schema has one of these, xgrammar enforces that keyword and ignores the others beside it.
_SELECTORS = ("$ref", "$dynamicRef", "const", "enum", "anyOf", "oneOf", "allOf")
_OPEN_KEYS = ("patternProperties", "propertyNames", "additionalProperties", "unevaluatedProperties")
_BY_TYPE = {
    "object": ("properties", "required", "minProperties", "maxProperties", *_OPEN_KEYS),
    "array": ("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"),
    "string": ("pattern", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_ASSERTIONS = ("type", *_SELECTORS, *(keyword for keywords in _BY_TYPE.values() for keyword in keywords))


def check_schema(schema: Any, path: str = "the schema") -> None:
    """Raise ValueError, with the place and the keyword, where xgrammar would not enforce part of `schema`.

    A malformed schema passes: xgrammar refuses it.
    """
    if not isinstance(schema, Mapping):
        return
    problem = _problem(schema)
    if problem:
        raise ValueError(f"{path}: {problem}")
    for name, child in _children(schema):
        check_schema(child, f"{path}.{name}")


def _problem(schema: Mapping[str, Any]) -> str | None:
    """The first keyword of a schema that xgrammar would not enforce, as a message; children are not looked at."""
    for keyword in _NOT_ENFORCED:
        if schema.get(keyword):
            return f"{keyword!r} cannot be enforced; leave it out and check the results"
    present = [keyword for keyword in _ASSERTIONS if keyword in schema]
    for selector in _SELECTORS:
        if selector in schema:
            beside = set(present) - {selector} - ({"type"} if selector in ("const", "enum") else set())
            return _selector_problem(selector, schema[selector], sorted(beside))
    types = schema.get("type", "object" if "properties" in schema else None)
    types = [types] if isinstance(types, str) else types
    if not types:
        return f"{present[0]!r} is only enforced beside a 'type'" if present else None
    if "object" in types:
        return _object_problem(schema)
    if "string" in types:
        return _string_problem(schema)
    if "number" in types and "multipleOf" in schema:
        return "'multipleOf' is enforced for type 'integer' only"
    return None


def _selector_problem(selector: str, value: Any, beside: list[str]) -> str | None:
    """`_problem` of a schema with a keyword of `_SELECTORS` and the keywords `beside` it."""
    if beside:
        return f"{beside[0]!r} is not enforced beside {selector!r}; move it into the schema that {selector!r} names"
    if "Of" in selector and not value:
        return f"{selector!r} is empty"
    if selector == "allOf" and len(value) > 1:
        return "'allOf' of several schemas cannot be enforced; merge them into one"
    if selector == "$dynamicRef" or (selector == "$ref" and not re.match(r"#(/|$)", str(value))):
        return f"{selector} {value!r} cannot be followed; only '#' and '#/...' within the schema can"
    return None


def _object_problem(schema: Mapping[str, Any]) -> str | None:
    """`_problem` of a schema of type "object"."""
    properties = schema.get("properties") or {}
    unknown = [name for name in schema.get("required") or () if name not in properties]
    if unknown:
        return f"required {unknown[0]!r} is not among the properties"
    open_keys = [keyword for keyword in _OPEN_KEYS if schema.get(keyword, False) is not False]
    for keyword in ("patternProperties", "propertyNames"):
        if keyword in open_keys and properties:
            return f"{keyword!r} is not enforced beside 'properties'"
    if open_keys and schema.get("minProperties"):
        return f"'minProperties' is not enforced beside {open_keys[0]!r}: the same name may come twice"
    return None


def _string_problem(schema: Mapping[str, Any]) -> str | None:
    """`_problem` of a schema of type "string"."""
    limits = [name for name in ("pattern", "format", "minLength", "maxLength") if name in schema]
    if len(limits) > 1 and limits != ["minLength", "maxLength"]:
        return f"only one of {' and '.join(map(repr, limits))} can be enforced"
    # xgrammar puts these characters of a pattern into the text as they are. JSON needs a backslash before them.
    outside_classes = re.sub(r"\[(\\.|[^\]\\])*\]", "", str(schema.get("pattern", "")))
    if re.search(r'"|\\[\\"nrtfvcxu0]', outside_classes):
        return "a 'pattern' with quotes, backslashes or control characters outside [...] cannot be enforced"
    return None


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside a schema, each with its path."""
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        children = schema.get(keyword)
        if isinstance(children, Mapping):
            yield from ((f"{keyword}.{name}", child) for name, child in children.items())
    for keyword in ("prefixItems", "anyOf", "oneOf", "allOf"):
        children = schema.get(keyword)
        if isinstance(children, list):
            yield from ((f"{keyword}[{i}]", child) for i, child in enumerate(children))
    for keyword in ("items", "unevaluatedItems", "additionalProperties", "unevaluatedProperties"):
        yield keyword, schema.get(keyword)
    names = schema.get("propertyNames")
    if isinstance(names, Mapping):
        yield "propertyNames", {"type": "string", **names}
