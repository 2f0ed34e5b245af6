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

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

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


def accepts(compiler: ConstraintCompiler, text: str, **kind: Any) -> bool:
    """Whether a text is allowed, byte by byte, up to its end."""
    constraint = compiler.compile(**kind)
    for byte in text.encode():
        if byte + 1 not in allowed_ids(constraint):
            return False
        constraint.accept(byte + 1)
    return 0 in allowed_ids(constraint)


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
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 3}
    schema = {"type": "object", "properties": {"a": numbers, "b": numbers}, "required": ["a", "b"]}
    for text in samples(compiler, 20, json_schema=schema):
        assert text == json.dumps(json.loads(text))


@pytest.mark.parametrize("limit", [{}, {"maxLength": 20}, {"minLength": 1}, {"minLength": 3, "maxLength": 3}])
def test_strings_of_limited_length_may_have_escapes(compiler: ConstraintCompiler, limit: dict):
    schema = {"type": "string", **limit}
    good = ["a\nb", 'a"b', "aéb", "\\\\\\", "😀😀😀"]
    for text in [json.dumps(value, ensure_ascii=is_ascii) for value in good for is_ascii in (True, False)]:
        assert accepts(compiler, text, json_schema=schema), text
    for text in ['"\\ud83d"', '"a\\x"', '"a\nb"']:  # half a pair, no escape of JSON, a control character
        assert not accepts(compiler, text, json_schema=schema), text


def test_a_surrogate_pair_counts_once(compiler: ConstraintCompiler):
    one = {"type": "string", "minLength": 1, "maxLength": 1}
    assert [
        accepts(compiler, text, json_schema=one) for text in ('"\\ud83d\\ude00"', '"😀"', '"\\n"', '""', '"ab"')
    ] == [
        *(True, True, True),
        *(False, False),
    ]


def test_a_key_in_escapes_is_no_way_around_its_schema(compiler: ConstraintCompiler):
    """llguidance takes "\\u0061" for another name than "a"."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert accepts(compiler, '{"a": 1, "b": "x"}', json_schema=schema)
    assert not accepts(compiler, '{"a": 1, "\\u0061": "x"}', json_schema=schema)
    by_pattern = {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": True}
    assert not accepts(compiler, '{"\\u0061": "x"}', json_schema=by_pattern)


def test_any_json_object(compiler: ConstraintCompiler):
    value = {"a": ["é\n", {"b": None}], "": -1.5e-7, "c": {}}
    for is_ascii in (True, False):
        assert accepts(compiler, json.dumps(value, ensure_ascii=is_ascii), json_schema={"type": "object"})
    assert not accepts(compiler, "[]", json_schema={"type": "object"})


def test_schema_may_be_a_string_of_json(compiler: ConstraintCompiler):
    assert set(samples(compiler, 8, json_schema='{"enum": [7]}')) == {"7"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "lookaround"),
        ({"regex": "\ud800"}, "surrogates"),
        ({"regex": 5}, "expected a string"),
        ({"grammar": 'root ::= "a'}, "line 1"),
        ({"grammar": "root ::= root"}, "no text"),
        ({"json_schema": "{"}, "Expecting"),
        ({"json_schema": {"type": "strin"}}, "strin"),
        ({"json_schema": {"const": {1}}}, "set"),
        ({"json_schema": False}, "false"),
        ({"json_schema": {"enum": []}}, "no text matches"),
        ({"json_schema": '{"const": NaN}'}, "NaN"),
        ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, "no text matches"),
    ],
)
def test_wrong_constraint_names_field_and_reason(compiler: ConstraintCompiler, kind: dict, reason: str):
    with pytest.raises(ValueError, match=f"^{next(iter(kind))}: (?!\\[).*{reason}"):
        compiler.compile(**kind)


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
    assert not constraint.work.is_exceeded


def test_dead_end_of_a_poor_vocabulary_allows_the_end():
    constraint = ConstraintCompiler([None, b"a", b"b"], vocab_size=2).compile(regex="ab")
    constraint.accept(1)
    assert allowed_ids(constraint) == [0]


def test_constraints_of_one_grammar_are_independent(compiler: ConstraintCompiler):
    first, second = compiler.compile(regex="ab"), compiler.compile(regex="ab")
    first.accept(TOKENS.index(b"a"))
    assert allowed_ids(first) == [TOKENS.index(b"b")]
    assert TOKENS.index(b"a") in allowed_ids(second)
