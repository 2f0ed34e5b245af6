"""JSON schemas: which are enforced, which are refused and why, and what is left out of objects."""

from __future__ import annotations

import datetime
import itertools
import json
import re
from typing import Any

import jsonschema
import pytest
from constrained_texts import accepts

from rwkv_batch.text.json_grammar import enforceable_schema
from rwkv_batch.text.schema_support import FORMATS, Refused

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
A, B = {"properties": {"a": INTEGER}, "required": ["a"]}, {"properties": {"b": STRING}, "required": ["b"]}


def tag(value: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": value}, **properties}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        # Objects are closed, unless a schema asks for other keys.
        ({**A, "type": "object"}, [{"a": 1}], [{"a": 1, "b": 2}, {}]),
        (A, [{"a": 1}], ["x", {"a": 1, "b": 2}]),
        ({"type": "object", "required": ["a"]}, [{"a": "x"}], [{}, {"b": 1}]),
        ({**A, "additionalProperties": True}, [{"a": 1, "z": None}], [{"z": 1}]),
        ({**A, "unevaluatedProperties": STRING}, [{"a": 1, "z": "s"}], [{"a": 1, "z": 1}]),
        ({**A, "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "z": 1}]),
        ({"patternProperties": {"^x": INTEGER}}, [{}, {"x1": 1}], [{"y": 1}, {"x1": "s"}]),
        ({**A, "patternProperties": {"^a": {"minimum": 3}}}, [{"a": 3}, {"a": 4, "ab": 5}], [{"a": 1}]),
        ({"propertyNames": {"enum": ["x", "y"]}, "additionalProperties": INTEGER}, [{"x": 1}], [{"z": 1}]),
        ({"type": "object", "minProperties": 1}, [{"q": 1}], [{}]),
        # Schemas of one value are taken together.
        ({"allOf": [A, B]}, [{"a": 1, "b": "x"}], [{"a": 1}, {"a": 1, "b": "x", "c": 1}]),
        ({"$ref": "#/$defs/a", **B, "$defs": {"a": A}}, [{"a": 1, "b": "x"}], [{"a": 1}, {"b": "x"}]),
        ({"allOf": [{"$ref": "#/$defs/a"}], "title": "t", "$defs": {"a": A}}, [{"a": 1}], [{}]),
        ({"type": "object", "anyOf": [A, B]}, [{"a": 1}, {"b": "x"}], [{}, {"a": 1, "z": 1}]),
        ({"properties": {"c": {}}, "anyOf": [A, B]}, [{"c": 1, "a": 1}, {"b": "x"}], [{"c": 1}]),
        ({"allOf": [INTEGER, {"minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6, "x"]),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^b"}]}, ["a", "bcd"], ["abc", 1]),
        # `oneOf`, where the schemas exclude each other.
        ({"oneOf": [tag("x", v=INTEGER), tag("y", w=INTEGER)]}, [{"kind": "x", "v": 1}], [{"kind": "x", "w": 1}]),
        ({"oneOf": [INTEGER, STRING, {"type": "null"}]}, [1, "x", None], [True, 1.5]),
        ({"oneOf": [A, B]}, [{"a": 1}, {"b": "x"}], [{"a": 1, "b": "x"}, {}]),
        ({"oneOf": [{"const": 1, "title": "one"}, {"const": 2}]}, [1, 2], [3]),
        ({"oneOf": [{"type": "number", "maximum": 1}, {"type": "number", "minimum": 2}]}, [0.5, 2.5], [1.5]),
        # One keyword alone.
        ({"minLength": 2}, ["ab"], ["a", 1]),
        ({"type": "string", "pattern": "^[a-c]+$", "maxLength": 2}, ["ab"], ["abc", "x"]),
        ({"type": "number", "multipleOf": 0.25}, [0.75, 3], [0.3]),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, [0.5], [0]),
        ({"type": "integer", "maximum": 2**63 - 1, "minimum": -(2**63)}, [-5, 2**53], [1.5]),
        ({"type": "array", "prefixItems": [INTEGER, STRING]}, [[], [1, "x"]], [["x"], [1, "x", 2]]),
        ({"type": "array", "items": [INTEGER], "additionalItems": STRING}, [[1, "x"]], [[1, 2]]),
        ({"type": "array", "items": INTEGER, "maxItems": 1, "uniqueItems": True}, [[1]], [[1, 2]]),
        ({"enum": ["é\n", 1.5, None, {"k": [True]}]}, ["é\n", 1.5, None, {"k": [True]}], ["e", False]),
        ({"type": "string", "enum": ["a", 1]}, ["a"], [1]),
        ({"not": False, "if": A, "uniqueItems": False, "dependentRequired": {}, "format": "int32"}, [1, "x"], []),
        ({"type": "object", "properties": {"a": False, "b": True}}, [{"b": 1}], [{"a": 1}]),
    ],
)
def test_a_schema_is_enforced(schema: dict, good: list[Any], bad: list[Any]):
    texts = [json.dumps(value, ensure_ascii=False) for value in (*good, *bad)]
    found = accepts("json_schema", json.dumps(schema), texts)
    assert found == [True] * len(good) + [False] * len(bad)
    for value in good:
        draft4 = isinstance(schema.get("exclusiveMinimum"), bool) or isinstance(schema.get("items"), list)
        (jsonschema.Draft4Validator if draft4 else jsonschema.Draft202012Validator)(schema).validate(value)


def test_a_recursive_schema():
    tree = {"type": "object", "properties": {"v": INTEGER, "next": {"$ref": "#"}}, "required": ["v"]}
    texts = ['{"v": 1, "next": {"v": 2, "next": {"v": 3}}}', '{"v": 1, "next": {}}']
    assert accepts("json_schema", json.dumps(tree), texts) == [True, False]
    encoded = {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": INTEGER}}
    assert accepts("json_schema", json.dumps(encoded), ["5", '"x"']) == [True, False]


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "null"}}, "the schema: 'not' cannot be enforced"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "'uniqueItems'"),
        ({"if": A, "then": B}, "'if' cannot be enforced"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"$dynamicRef": "#a"}, "'\\$dynamicRef'"),
        ({"$ref": "http://example.com/schema"}, "cannot be followed"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"allOf": [{"$ref": "#"}, A]}, "leads back to itself"),
        ({"anyOf": []}, "'anyOf' is empty"),
        ({"anyOf": 5}, "expected a list of schemas"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "'oneOf': a text may match both schemas 0 and 1"),
        ({"oneOf": [A, {"properties": {"a": INTEGER, "b": STRING}}]}, "both schemas 0 and 1"),
        ({"oneOf": [tag("x"), {"type": "object"}]}, "both schemas"),
        ({"type": "object", "minProperties": 2}, "'minProperties' is enforced up to 1 here"),
        ({**A, "propertyNames": {"maxLength": 2}}, "'propertyNames'"),
        ({"type": "string", "format": "uri-reference"}, "'format': 'uri-reference'"),
        ({"type": "string", "minLength": -1}, "'minLength': got -1"),
        ({"type": "string", "pattern": "(?=a)"}, "'pattern': .*lookaround"),
        ({"type": "number", "minimum": "3"}, "'minimum': got '3', expected a number"),
        ({"type": "integer", "minimum": 2**60}, "'minimum': numbers beyond"),
        ({"const": 2**60}, "'const': numbers beyond"),
        ({**A, "additionalProperties": {"const": "a\x01"}}, "additionalProperties: 'const': control characters"),
        ({"type": "integer", "multipleOf": 0}, "'multipleOf': got 0"),
        ({"type": ["string", "text"]}, "got type 'text'"),
        ({"properties": 5}, "'properties': got 5"),
        ({"type": "object", "required": "a"}, "'required': got 'a'"),
        ({"properties": {"a": {"anyOf": [{}, {"not": {}}]}}}, r"the schema.properties.a.anyOf\[1\]: 'not'"),
        ({"type": "array", "items": {"type": "array", "items": 3}}, "the schema.items.items: got 3, expected a schema"),
        (False, "is false"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: Any, named: str):
    with pytest.raises(Refused, match=named):
        enforceable_schema(schema)


def test_annotations_and_unknown_keywords_say_nothing():
    schema = {"type": "integer", "title": "t", "x-guidance": {"lenient": True}, "deprecated": True, "foo": 1}
    assert enforceable_schema(schema) == ({"type": "integer"}, False)


def test_dates_are_days_of_the_calendar():
    days = [
        f"{year}-{month:02}-{day:02}"
        for year, month, day in itertools.product((1900, 2000, 2023, 2024), range(14), range(33))
    ]
    found = accepts("json_schema", '{"type": "string", "format": "date"}', [f'"{day}"' for day in days])
    for day, is_accepted in zip(days, found, strict=True):
        try:
            datetime.date.fromisoformat(day)
            is_day = True
        except ValueError:
            is_day = False
        assert is_accepted == is_day, day


def test_each_format_has_an_example():
    examples = {
        "date": "2024-02-29", "time": "23:59:59Z", "date-time": "2024-02-29T01:02:03.5+01:00", "duration": "P1DT2H",
        "email": "a.b@example.org", "hostname": "a-b.org", "ipv4": "1.2.3.255", "ipv6": "2001:db8::1",
        "uuid": "123e4567-e89b-12d3-a456-426614174000", "uri": "https://a.org/b?c=d#e", "idn-email": "a@b.org",
        "idn-hostname": "a.org", "iri": "https://a.org/", "json-pointer": "/a~1b/0", "relative-json-pointer": "1/a",
    }  # fmt: skip
    assert examples.keys() == FORMATS.keys()
    for name, example in examples.items():
        schema = json.dumps({"type": "string", "format": name})
        assert accepts("json_schema", schema, [f'"{example}"', '"no such thing!"']) == [True, False], name
        assert not re.search("[^\x20-\x7e]", example)
