"""Constraints: all texts of allowed tokens match the schema, regex or grammar, and wrong constraints are refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rwkv_batch.text.constraint import SequenceConstraint
from rwkv_batch.text.constraint_compiler import ConstraintCompiler
from rwkv_batch.text.load_tokenizer import load_tokenizer

pytest.importorskip("xgrammar", reason="structured output needs the extra 'structured'")

TOKENIZER = load_tokenizer("bytes", vocab_size=257, model_path=None)
# Every byte; tokens that cross borders of the grammar; and tokens that no grammar here allows.
WORDS = [b'{"', b'":', b'", "', b"\n\n", b"ab", b"12", b'"}', b"a\x01", b"\xed\xa0", "né".encode(), b"\xe4\xb8", b""]
TOKENS = [*TOKENIZER.token_bytes, *(word or None for word in WORDS)]
V = 300  # more than the tokens, and not a multiple of 32


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(TOKENS, V)


def allowed_ids(constraint: SequenceConstraint) -> list[int]:
    masks = np.full((1, -(-len(constraint.next_tokens()) // 32)), -1, np.int32)
    constraint.batch.fill([constraint], masks)
    return np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little")).tolist()


def sample(constraint: SequenceConstraint, rng: random.Random, max_tokens: int = 400) -> bytes | None:
    """A text of random allowed tokens, half of them from those that close it; None if `max_tokens` do not end it."""
    text = b""
    for _ in range(max_tokens):
        ids = allowed_ids(constraint)
        closing = [i for i in ids if i == 0 or TOKENS[i] in (b'"', b"}", b"]")]
        token_id = rng.choice(closing if closing and rng.random() < 0.5 else ids)
        constraint.accept(token_id)
        if token_id == 0:
            assert constraint.is_finished
            return text
        assert not constraint.is_finished
        text += TOKENS[token_id]
    return None


def samples(compiler: ConstraintCompiler, number: int, **kind: Any) -> list[str]:
    """Texts of `sample`, decoded strictly: a text that is not UTF-8 fails the test."""
    texts = [sample(compiler.compile(**kind), random.Random(seed)) for seed in range(number)]
    finished = [text.decode("utf-8") for text in texts if text is not None]
    assert len(finished) >= number // 2
    return finished


@pytest.mark.parametrize(
    "regex",
    [
        "yes|no",
        "[0-9]{3}-[a-z]+",
        r"\d+(\.\d*)?",
        "a*",
        "[^a]{3}",
        "(né|中)+",
        '[{"]{1,3}: ?"',
        "",
        "[\ue000-\U00010400]{2}",
    ],
)
def test_texts_match_the_regex(compiler: ConstraintCompiler, regex: str):
    for text in samples(compiler, 40, regex=regex):
        assert re.fullmatch(regex, text, re.ASCII), text


def test_texts_derive_from_the_grammar(compiler: ConstraintCompiler):
    grammar = """
        root ::= term ("+" term)*
        term ::= [1-9] | "(" root ")"
    """
    for text in samples(compiler, 40, grammar=grammar):
        assert set(text) <= set("123456789+()")
        assert eval(text) > 0


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["x", "é\n"]}, "maxItems": 2},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "next"],
    "additionalProperties": False,
}


def is_person(value: Any) -> bool:
    return (
        value.keys() - {"tags"} == {"name", "age", "next"}
        and 1 <= len(value["name"]) <= 6
        and type(value["age"]) is int
        and 0 <= value["age"] <= 130
        and len(value.get("tags", [])) <= 2
        and set(value.get("tags", [])) <= {"x", "é\n"}
        and (value["next"] is None or is_person(value["next"]))
    )


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (PERSON, is_person),
    ({}, lambda value: True),
    ({"type": "string"}, lambda value: isinstance(value, str)),
    ({"type": "string", "minLength": 3}, lambda value: len(value) >= 3),
    ({"type": "string", "pattern": '^[^"a]+$'}, lambda value: not set(value) & set('"a')),
    ({"type": "number", "minimum": -1.5, "maximum": 2}, lambda value: -1.5 <= value <= 2),
    (
        {"type": "integer", "multipleOf": 7, "minimum": 20, "maximum": 60},
        lambda value: value in (21, 28, 35, 42, 49, 56),
    ),
    ({"type": ["boolean", "null"]}, lambda value: value in (True, False, None)),
    ({"const": {"a": [1, "é"]}}, lambda value: value == {"a": [1, "é"]}),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, lambda value: len(value) in (2, 3)),
    (
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        lambda value: all(type(member) is bool for member in value.values()),
    ),
    (
        {"type": "object", "propertyNames": {"pattern": "^[xy]$"}, "additionalProperties": {"type": "null"}},
        lambda value: value.keys() <= {"x", "y"},
    ),
    ({"allOf": [{"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "null"}}, "title": "t"}, lambda value: value is None),
]


@pytest.mark.parametrize(
    ("schema", "is_valid"), SCHEMAS, ids=lambda case: None if callable(case) else json.dumps(case)[:40]
)
def test_texts_are_json_that_satisfies_the_schema(compiler: ConstraintCompiler, schema: dict, is_valid: Callable):
    for text in samples(compiler, 40, json_schema=schema):
        assert "\n" not in text
        assert is_valid(json.loads(text)), text


def test_json_is_written_on_one_line_as_json_dumps_does(compiler: ConstraintCompiler):
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}
    schema = {"type": "object", "properties": {"a": numbers, "b": numbers}, "required": ["a", "b"]}
    for text in samples(compiler, 20, json_schema=schema):
        assert text == json.dumps(json.loads(text))


def test_schema_may_be_a_string_of_json(compiler: ConstraintCompiler):
    assert set(samples(compiler, 8, json_schema='{"enum": [7]}')) == {"7"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"regex": "(a"}, "parenthesis is not closed"),
        ({"regex": "(?=a)b"}, "Lookahead"),
        ({"regex": "\ud800"}, "surrogates"),
        ({"regex": 5}, "expected a string"),
        ({"grammar": 'root ::= "a'}, "line 1"),
        ({"grammar": "root ::= root"}, "no text"),
        ({"json_schema": "{"}, "Expecting"),
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"const": {1}}}, "set"),
        ({"json_schema": False}, "false"),
    ],
)
def test_wrong_constraint_names_field_and_reason(compiler: ConstraintCompiler, kind: dict, reason: str):
    with pytest.raises(ValueError, match=f"^{next(iter(kind))}: (?!\\[).*{reason}"):
        compiler.compile(**kind)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "null"}}, "'not'"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "number", "multipleOf": 0.5}, "'multipleOf'"),
        ({"minimum": 3}, "'minimum' is only enforced beside a 'type'"),
        ({"type": "object", "required": ["a"]}, "required 'a'"),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "patternProperties": {"b": {}}},
            "'patternProperties'",
        ),
        ({"type": "object", "additionalProperties": True, "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "additionalProperties": {}, "minProperties": 1}, "'minProperties'"),
        ({"type": "string", "pattern": "a*", "maxLength": 2}, "'pattern' and 'maxLength'"),
        ({"type": "string", "pattern": 'a"'}, "quotes"),
        ({"type": "string", "pattern": "(a|b\\n)"}, "quotes"),
        ({"$ref": "#/$defs/n", "minimum": 3, "$defs": {"n": {"type": "integer"}}}, "'minimum' is not enforced beside"),
        ({"$ref": "http://example.com/schema"}, "cannot be followed"),
        ({"allOf": [{"type": "integer"}, {"type": "number"}]}, "'allOf'"),
        ({"anyOf": []}, "'anyOf' is empty"),
        (
            {"type": "object", "properties": {"a": {"anyOf": [{}, {"not": {}}, {"not": {"const": 1}}]}}},
            r"a\.anyOf\[2\]: 'not'",
        ),
        ({"type": "array", "items": {"if": {"const": 1}, "then": False}}, "items: 'if'"),
    ],
)
def test_schema_that_would_not_be_enforced_is_refused(compiler: ConstraintCompiler, schema: dict, named: str):
    with pytest.raises(ValueError, match=f"^json_schema: the schema.*{named}"):
        compiler.compile(json_schema=schema)


def test_exactly_one_constraint(compiler: ConstraintCompiler):
    with pytest.raises(ValueError, match="no constraint"):
        compiler.compile()
    with pytest.raises(ValueError, match="regex and grammar"):
        compiler.compile(regex="a", grammar='root ::= "a"')


def test_end_of_text_is_allowed_exactly_where_the_text_may_end(compiler: ConstraintCompiler):
    constraint = compiler.compile(regex="ab?")
    a, b, ab = (TOKENS.index(token) for token in (b"a", b"b", b"ab"))
    assert allowed_ids(constraint) == [a, ab]
    constraint.accept(a)
    assert allowed_ids(constraint) == [0, b]
    constraint.accept(b)
    assert (allowed_ids(constraint), constraint.is_finished) == ([0], False)
    constraint.accept(0)
    assert (allowed_ids(constraint), constraint.is_finished) == ([0], True)


def test_token_that_is_not_allowed_leaves_only_the_end(compiler: ConstraintCompiler):
    constraint = compiler.compile(regex="a+")
    constraint.accept(TOKENS.index(b"z"))
    constraint.accept(TOKENS.index(b"a"))
    assert (allowed_ids(constraint), constraint.is_finished) == ([0], True)


def test_dead_end_of_a_poor_vocabulary_allows_the_end():
    constraint = ConstraintCompiler([None, b"a", b"b"], vocab_size=2).compile(regex="ab")
    constraint.accept(1)
    assert allowed_ids(constraint) == [0]


def test_constraints_of_one_grammar_are_independent(compiler: ConstraintCompiler):
    first, second = compiler.compile(regex="ab"), compiler.compile(regex="ab")
    first.accept(TOKENS.index(b"a"))
    assert allowed_ids(first) == [TOKENS.index(b"b")]
    assert TOKENS.index(b"a") in allowed_ids(second)
