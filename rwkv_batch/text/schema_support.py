"""What JSON schemas may ask for: tables of keywords and formats, and checks of single keywords.

The tables are for llguidance 1.9.1, found by comparing its texts with the package `jsonschema`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .regex_syntax import rust_regex

TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
REFUSED = (
    *("if", "contains", "dependentRequired", "dependentSchemas", "dependencies", "not"),
    *("$dynamicRef", "$recursiveRef"),
)
"""Keywords that cannot be enforced, unless their value asks for nothing."""
OBJECT_KEYWORDS = (
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "unevaluatedProperties"),
)
ARRAY_KEYWORDS = (
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
)
STRING_KEYWORDS = ("pattern", "minLength", "maxLength", "format")
NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
KEYWORDS = ("type", "const", "enum", *OBJECT_KEYWORDS, *ARRAY_KEYWORDS, *STRING_KEYWORDS, *NUMBER_KEYWORDS)
"""Keywords of one value. `$ref`, `allOf`, `anyOf` and `oneOf` combine schemas; all others say nothing about a text."""
LARGEST = 1 << 53
"""Numbers up to here are exact in llguidance. A bound beyond it is lowered to it."""

_NEEDS_U = re.compile("[\x00-\x07\x0b\x0e-\x1f]")
_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_POINTER = r"(?:/(?:[^/~]|~[01])*)*"
FORMATS: dict[str, dict[str, str]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    **{name: {"format": name} for name in ("duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")},
    "idn-email": {"format": "email"},
    "idn-hostname": {"format": "hostname"},
    "iri": {"format": "uri"},
    "json-pointer": {"pattern": f"^{_POINTER}$"},
    "relative-json-pointer": {"pattern": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$"},
}
"""Format → the keywords that enforce it. An internationalized format is enforced as its ASCII part."""
_UNENFORCED_FORMATS = ("regex", "uri-reference", "iri-reference", "uri-template")


class Refused(ValueError):
    """A constraint cannot be used.

    Args:
        is_too_large: it is well-formed, and takes too much time or memory.
    """

    def __init__(self, message: str, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large


def check_keywords(schema: Mapping[str, Any]) -> None:
    """Raise Refused for the first keyword of a schema that cannot be enforced; children are not looked at."""
    for keyword in REFUSED:
        value = schema.get(keyword)
        asks_for_nothing = value is None or (keyword != "contains" and value in ({}, [], False))
        if keyword == "not":
            asks_for_nothing = value is None or value is False
        if keyword == "if":
            asks_for_nothing = keyword not in schema or not ("then" in schema or "else" in schema)
        if keyword in schema and not asks_for_nothing:
            raise Refused(f"{keyword!r} cannot be enforced; leave it out and check the results")


def types_of(schema: Mapping[str, Any]) -> list[str] | None:
    """The types that a schema names; None where it names none. Raises Refused for an unknown one."""
    if "type" not in schema:
        return None
    given = schema["type"]
    types = list(given) if isinstance(given, list) else [given]
    for name in types:
        if name not in TYPES:
            raise Refused(f"got type {name!r}, expected one of {', '.join(TYPES)}")
    return types


def implied_type(schema: Mapping[str, Any]) -> str | None:
    """The type that all keywords of a schema without `type` are about; None where there is not just one."""
    families = {
        "object": OBJECT_KEYWORDS,
        "array": ARRAY_KEYWORDS,
        "string": STRING_KEYWORDS,
        "number": NUMBER_KEYWORDS,
    }
    found = [name for name, keywords in families.items() if any(keyword in schema for keyword in keywords)]
    return found[0] if len(found) == 1 else None


def number_keywords(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds and `multipleOf` of a schema, as llguidance enforces them exactly."""
    out: dict[str, Any] = {}
    for keyword in NUMBER_KEYWORDS:
        if keyword not in schema:
            continue
        value = schema[keyword]
        bound = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}.get(keyword)
        if isinstance(value, bool) and bound is not None:  # as in draft 4: about the bound beside it
            if value and bound in out:
                out[keyword] = out.pop(bound)
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Refused(f"{keyword!r}: got {value!r}, expected a number")
        out[keyword] = _multiple(value) if keyword == "multipleOf" else _bound(keyword, value)
    return out


def _bound(keyword: str, value: float) -> float:
    is_lower = "Minimum" in keyword or keyword == "minimum"
    if (value > LARGEST) if is_lower else (value < -LARGEST):
        raise Refused(f"{keyword!r}: numbers beyond {LARGEST} cannot be enforced, got {value}")
    return max(-LARGEST, value) if is_lower else min(LARGEST, value)


def _multiple(value: float) -> float:
    if not 1e-9 <= value <= LARGEST:
        raise Refused(f"'multipleOf': got {value}, expected a number from 1e-9 to {LARGEST}")
    return value


def string_keywords(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lengths, pattern and format of a schema, as schemas that a string must satisfy together."""
    out: dict[str, Any] = {
        keyword: count(keyword, schema[keyword]) for keyword in ("minLength", "maxLength") if keyword in schema
    }
    schemas = [out]
    if "pattern" in schema:
        out["pattern"] = pattern(schema["pattern"])
    name = schema.get("format")
    if name in _UNENFORCED_FORMATS:
        raise Refused(f"'format': {name!r} cannot be enforced; leave it out and check the results")
    if isinstance(name, str) and name in FORMATS:
        schemas.append(FORMATS[name])
    return [keywords for keywords in schemas if keywords]


def pattern(value: Any) -> str:
    """A `pattern` of a schema in Rust's syntax."""
    if not isinstance(value, str):
        raise Refused(f"'pattern': got {value!r}, expected a string")
    try:
        return rust_regex(value, is_schema=True)
    except ValueError as error:
        raise Refused(f"'pattern': {error}") from error


def count(keyword: str, value: Any) -> int:
    """A length or a number of items. Raises Refused for anything but a whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise Refused(f"{keyword!r}: got {value!r}, expected a whole number from 0 on")
    return int(value)


def check_value(keyword: str, value: Any) -> None:
    """Raise Refused where a value of `const` or `enum` has a number that is not exact in llguidance."""
    if isinstance(value, Mapping):
        for child in value.values():
            check_value(keyword, child)
    elif isinstance(value, list):
        for child in value:
            check_value(keyword, child)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > LARGEST:
        raise Refused(f"{keyword!r}: numbers beyond {LARGEST} cannot be enforced, got {value}")


def has_control_characters(value: Any) -> bool:
    """Whether a value of `const` or `enum` has characters that JSON writes with \\u only."""
    if isinstance(value, str):
        return bool(_NEEDS_U.search(value))
    children = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return any(map(has_control_characters, children))


def property_counts(schema: Mapping[str, Any], num_required: int, is_open: bool) -> dict[str, int]:
    """`minProperties` and `maxProperties`, as far as they ask for more than the required keys.

    Args:
        is_open: keys may come that the schema does not name.
    """
    out = {name: count(name, schema[name]) for name in ("minProperties", "maxProperties") if name in schema}
    if out.get("minProperties", 0) <= num_required:
        out.pop("minProperties", None)
    elif is_open and out["minProperties"] > num_required + 1:
        raise Refused(
            f"'minProperties' is enforced up to {num_required + 1} here: "
            "a key that the schema does not name may come twice"
        )
    return out


def without_property_names(schema: Mapping[str, Any], is_alone: bool) -> dict[str, Any]:
    """A schema with other keywords in the place of `propertyNames`."""
    names, out = schema["propertyNames"], {key: value for key, value in schema.items() if key != "propertyNames"}
    if names is True or names == {} or names == {"type": "string"}:
        return out
    others = out.pop("additionalProperties", True)
    said = {key: value for key, value in names.items() if key in KEYWORDS and key != "type"} if names else {}
    if not is_alone or any(key in out for key in ("properties", "patternProperties", "required")):
        raise Refused(
            "'propertyNames' is not enforced beside 'properties', 'patternProperties', 'required' or other schemas"
        )
    if list(said) == ["pattern"]:
        return {**out, "patternProperties": {said["pattern"]: others}, "additionalProperties": False}
    values = said.get("enum", [said["const"]] if "const" in said else None)
    if len(said) == 1 and isinstance(values, list):
        properties = {name: others for name in values if isinstance(name, str)}
        return {**out, "properties": properties, "additionalProperties": False}
    raise Refused("'propertyNames' is enforced with one of 'pattern', 'enum' and 'const' alone")
