"""JSON schemas at random: texts of random tokens satisfy their schema, and values of a schema can be written."""

from __future__ import annotations

import json
import random
import re
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rwkv_batch.text.constraint import CompiledConstraint, Vocabulary, Work
from rwkv_batch.text.constraint_grammar import check, grammar_of
from rwkv_batch.text.schema_support import Refused

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

# Every byte, and tokens as World has them: across borders of JSON, parts of escapes, parts of characters.
WORDS = [
    *(b'{"', b'":', b'", "', b'"}', b'"]', b", ", b'": ', b'a"', b"ab", b"12", b"\\n", b"\\u", b"00", b"\\u00", b"e9"),
    *(b"\xc3", b"\xa9", "é".encode(), b"\xe4\xb8", b"\xf0\x9f\x98", b"{}", b"[]", b"true", b"null", b': "', b'\\"'),
    *(b"\\\\", b"-1", b".5", b"e1", b'"a": ', b"\\ud83d", b"\\ud83d\\u", b"\x0a", b"\xed\xa0", b"\xc0"),
]
TOKENS = [None, *(bytes([byte]) for byte in range(256)), *WORDS]
VOCABULARY = Vocabulary.of(TOKENS, len(TOKENS) + 7, 0)
KEYS = ["a", "b", "c", "é", "a b", 'd"e', "x1", "n\nl", "ab"]
SHORT = st.text(st.sampled_from('ab1 é中😀"\\\n\t/\x01'), max_size=6)


class Case(NamedTuple):
    """A schema and values; those that satisfy it can be written."""

    schema: Any
    values: st.SearchStrategy[Any]


def scalars() -> st.SearchStrategy[Case]:
    return st.one_of(
        st.sampled_from(
            [
                Case({"type": "null"}, st.none()),
                Case({"type": "boolean"}, st.booleans()),
                Case({"type": ["string", "null"], "minLength": 1}, SHORT | st.none()),
                Case({}, st.none() | st.integers(-5, 5) | SHORT | st.lists(SHORT, max_size=2)),
                Case({"type": "object"}, st.dictionaries(SHORT, SHORT | st.none(), max_size=2)),
            ]
        ),
        strings(),
        numbers(),
        st.lists(st.none() | st.integers(-3, 3) | SHORT | st.just({"a": [1]}), min_size=1, max_size=3).map(
            lambda values: Case({"enum": values}, st.sampled_from(values))
        ),
        SHORT.map(lambda value: Case({"const": value}, st.just(value))),
    )


@st.composite
def strings(draw: st.DrawFn) -> Case:
    schema: dict[str, Any] = {"type": "string"}
    least, most = draw(st.none() | st.integers(0, 3)), draw(st.none() | st.integers(3, 5))
    if least is not None:
        schema["minLength"] = least
    if most is not None:
        schema["maxLength"] = most
    patterns = ["^a", "b$", "^[a-c]*$", "[0-9]", "^(ab|c)+$", '"', "\\\\", '^[^"]+$', "^\\S*$", "é", "^.?.?$", "\\W"]
    pattern = draw(st.none() | st.none() | st.sampled_from(patterns))
    values = SHORT
    if pattern is not None:
        schema["pattern"] = pattern
        values = st.sampled_from(["a", "b", "ab", "abc", "1a", 'x"b', "\\", "é", "", " "])
    return Case(schema, values)


@st.composite
def numbers(draw: st.DrawFn) -> Case:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    bounds = st.sampled_from([0, 1, -1, 2.5, -7, 10, 100, -0.001, 3.0, 2**40])
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if draw(st.integers(0, 3)) == 0:
            schema[keyword] = draw(bounds)
    if draw(st.integers(0, 5)) == 0:
        schema["multipleOf"] = draw(st.sampled_from([2, 5, 0.5, 0.25]))
    return Case(schema, st.integers(-20, 120) | st.sampled_from([0.5, -0.25, 2.75, 99.5, 2**40 + 1]))


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[Case]) -> Case:
    item = draw(items)
    schema: dict[str, Any] = {"type": "array", "items": item.schema}
    least = draw(st.integers(0, 2))
    schema |= {"minItems": least} if least else {}
    schema |= {"maxItems": draw(st.integers(2, 3))} if draw(st.booleans()) else {}
    if draw(st.integers(0, 4)) == 0:
        first = draw(items)
        schema["prefixItems"] = [first.schema]
        return Case(schema, st.tuples(first.values, item.values).map(list))
    return Case(schema, st.lists(item.values, min_size=least, max_size=3))


@st.composite
def objects(draw: st.DrawFn, members: st.SearchStrategy[Case]) -> Case:
    names = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4))
    properties = {name: draw(members) for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": {name: case.schema for name, case in properties.items()}}
    required = [name for name in names if draw(st.booleans())]
    schema |= {"required": required} if required else {}
    optional = {name: case.values for name, case in properties.items() if name not in required}
    values = st.fixed_dictionaries({name: properties[name].values for name in required}, optional=optional)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        schema["additionalProperties"] = draw(members).schema
    elif kind == 1:
        schema["additionalProperties"] = False
    elif kind == 2:
        schema["patternProperties"] = {draw(st.sampled_from(["^a", "b", "^x[0-9]$", "é"])): draw(members).schema}
    elif kind == 3:
        schema["allOf"] = [draw(objects(members)).schema]
    elif kind == 4:
        schema["anyOf"] = [draw(objects(members)).schema, {"required": names[:1]}]
    elif kind == 5:
        schema |= {"minProperties": draw(st.integers(0, 2)), "maxProperties": 3}
    elif kind == 6:
        schema["$ref"] = "#/$defs/again"
    return Case(schema, values.map(lambda value: {name: value[name] for name in names if name in value}))


@st.composite
def choices(draw: st.DrawFn, members: st.SearchStrategy[Case]) -> Case:
    cases = draw(st.lists(members, min_size=1, max_size=3))
    keyword = draw(st.sampled_from(["anyOf", "oneOf"]))
    return Case({keyword: [case.schema for case in cases]}, st.one_of([case.values for case in cases]))


CASES = st.recursive(
    scalars(), lambda members: objects(members) | objects(members) | arrays(members) | choices(members), max_leaves=8
)
AGAIN = {"type": "object", "properties": {"more": {"$ref": "#/$defs/again"}, "v": {"type": "string", "minLength": 1}}}


def walk(constraint: Any, dice: random.Random, most: int = 200) -> bytes | None:
    """A text of random allowed tokens, many of them closing ones; None where it does not end."""
    text = b""
    for _ in range(most):
        ids = np.flatnonzero(constraint.next_tokens()).tolist()
        assert ids, f"nothing may follow {text!r}"
        closing = [i for i in ids if i == 0 or TOKENS[i] in (b'"', b"}", b"]", b'"}', b'"]')]
        token_id = dice.choice(closing if closing and dice.random() < 0.5 else ids)
        constraint.accept(token_id)
        if token_id == 0:
            return text
        text += TOKENS[token_id] or b""
    return None


def tokenized(data: bytes, dice: random.Random) -> list[int]:
    """A text as tokens, by one of many ways."""
    ids, at = [], 0
    by_first: dict[int, list[int]] = {}
    for token_id, token in enumerate(TOKENS):
        if token:
            by_first.setdefault(token[0], []).append(token_id)
    while at < len(data):
        fitting = [i for i in by_first[data[at]] if data.startswith(TOKENS[i] or b"", at)]
        ids.append(dice.choice(fitting))
        at += len(TOKENS[ids[-1]] or b"")
    return ids


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for child in value.values() for number in numbers_in(child)]
    if isinstance(value, list):
        return [number for child in value for number in numbers_in(child)]
    return [value] if isinstance(value, float) else []


def has_free_text_only(schema: Any) -> bool:
    """Whether strings may have any escape: names, constants and strings with a pattern are written as they are."""
    text = json.dumps(schema, ensure_ascii=False)
    return text.isascii() and not re.search('"(enum|const|pattern|patternProperties)":', text)


def closed(schema: Any, is_whole: bool = True) -> Any:
    """A schema without keys that it does not name, unless it asks for them.

    Args:
        is_whole: not one of several schemas of the same value.
    """
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for keyword in ("properties", "patternProperties"):
        if keyword in out:
            out[keyword] = {name: closed(child) for name, child in out[keyword].items()}
    for keyword in ("items", "additionalProperties"):
        if keyword in out:
            out[keyword] = closed(out[keyword])
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        if keyword in out:
            out[keyword] = [closed(child, keyword == "prefixItems") for child in out[keyword]]
    says_keys = any(keyword in out for keyword in ("properties", "allOf", "anyOf", "oneOf"))
    return {**out, "unevaluatedProperties": False} if is_whole and says_keys else out


def compiled(schema: Any) -> CompiledConstraint | None:
    """None where the schema is refused."""
    try:
        grammar = grammar_of("json_schema", json.dumps(schema))
        check(VOCABULARY, grammar)
    except Refused:
        return None
    return CompiledConstraint(grammar, VOCABULARY)


def test_schemas_at_random(soak_seed: int) -> None:
    outcomes = {"schemas": 0, "texts": 0, "values": 0}

    @seed(soak_seed)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CASES, st.data())
    def run(case: Case, data: st.DataObject) -> None:
        schema = {**case.schema, "$defs": {"again": AGAIN}} if isinstance(case.schema, dict) else case.schema
        validator, constraint = jsonschema.Draft202012Validator(schema), compiled(schema)
        can_be_written = jsonschema.Draft202012Validator(closed(schema))
        dice = random.Random(soak_seed)
        if constraint is None:
            return
        outcomes["schemas"] += 1
        for _ in range(4):
            text = walk(constraint.begin(Work()), dice)
            if text is not None:
                outcomes["texts"] += 1
                assert not re.search(b"[\x00-\x1f]", text)
                validator.validate(json.loads(text.decode("utf-8")))
        if '"additionalProperties": {' in json.dumps(schema):
            return  # a value of `case` may have keys in another order than the text
        for _ in range(4):
            value = data.draw(case.values)
            if not can_be_written.is_valid(value) or any(number.is_integer() for number in numbers_in(value)):
                continue
            outcomes["values"] += 1
            text = json.dumps(value, ensure_ascii=has_free_text_only(schema) and dice.random() < 0.5).encode()
            for _ in range(3):
                begun = constraint.begin(Work())
                for token_id in tokenized(text, dice):
                    assert begun.next_tokens()[token_id], (schema, text, TOKENS[token_id])
                    begun.accept(token_id)
                assert begun.next_tokens()[0], (schema, text)

    run()
    assert outcomes["schemas"] >= 25 and outcomes["texts"] >= 60 and outcomes["values"] >= 30, outcomes
