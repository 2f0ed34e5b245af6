"""Regular expressions rewritten for Rust: compared with Python's `re` on texts of every kind."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from constrained_texts import accepts

from rwkv_batch.text.regex_syntax import rust_regex

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

CHARS = ["a", "b", "z", "1", " ", "-", "]", "^", "[", "&", "$", ".", "/", '"', "\\", "\n", "\t", "\b", "\0", "é", "K"]
TEXTS = ["", *CHARS, *map("".join, itertools.product(CHARS, repeat=2))]


@pytest.mark.parametrize(
    "pattern",
    [
        *("^ab$", "a/b|-", "a\nb|\n", "(?i)ab|k", "\\d+", "[^a]{2}", "", "(a*)*b", "(?:ab)+", "(?P<x>a)b", "[a-b-z]+"),
        *("[]a]+", "[^]a]+", "[\\]\\-z]+", "[a&&b]+", "[[a]+", "[--a]", "[+--]+", "a{2}", "a{b|a{|}", "\\.\\-\\/|\\^"),
        *("[\\w.-]+", "\\x61\\u0062", "[\\x61-\\x63]+", "\\S+", "\\s\\S", "[^\\s]a", "[\\S]", "\\D\\W", "a|b|"),
        *("[ab]{1,2}", "\\$\\^", "[$^.]+", "[\\b]", "\\0", "é+|[à-ü]", "a.|.", "\\t\\n|\\n", "\\\\", "\"|'", "(?s:.)"),
    ],
)
def test_a_regex_matches_what_python_matches(pattern: str):
    assert accepts("regex", pattern, TEXTS) == [bool(re.fullmatch(pattern, text, re.ASCII)) for text in TEXTS]


PARTS = [
    *("a", "b", '"', "\\\\", "\\n", "\\t", ".", "\\d", "\\D", "\\w", "\\W", "\\s", "\\S", '[^"]', "[^a]", '[^"\\\\]'),
    *("[a-c]", "[\\x00-\\x7f]", "[^\\n]", "[\\s\\S]", '[\\w"]', "[^\\w]", "[^\\s]", "[\\D\\n]", "é", "[à-ü]", "\\/"),
    *("[^\\x00-\\x1f]", "[\\x00-\\x1f]", "[\\]\\-]", "\\u00e9", "\\x01"),
]


def pattern_at_random(dice: random.Random, depth: int = 0) -> str:
    kind = dice.random()
    if kind < 0.5 or depth > 2:
        return dice.choice(PARTS)
    one, other = (pattern_at_random(dice, depth + 1) for _ in range(2))
    if kind < 0.8:
        return one + other if kind < 0.7 else f"(?:{one}|{other})"
    return f"(?:{one})" + dice.choice(["*", "+", "?", "{1,2}", "{2}"])


def test_a_pattern_of_a_schema_matches_no_more_than_python_does(soak_seed: int):
    """With Unicode and with ASCII classes, lengths beside it, and every character that JSON escapes."""
    dice, num_matching = random.Random(soak_seed), 0
    for _ in range(60):
        pattern = dice.choice(["^", ""]) + pattern_at_random(dice) + dice.choice(["$", ""])
        exact = pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern
        schema = {"type": "string", "pattern": pattern, "maxLength": dice.randint(1, 2)}
        texts = dice.sample(TEXTS, 150)
        try:
            found = accepts("json_schema", json.dumps(schema), [json.dumps(t, ensure_ascii=False) for t in texts])
        except AssertionError as error:
            assert "Unsatisfiable" in str(error) or "empty" in str(error)
            continue
        for text, is_accepted in zip(texts, found, strict=True):
            matches = all(re.search(exact, text, flags) for flags in (0, re.ASCII))
            assert matches or not is_accepted, (schema, text)
            num_matching += is_accepted
    assert num_matching > 200


def test_usual_patterns_match_all_that_python_matches():
    for pattern, good in {
        "^[A-Z]{2}[0-9]{3}$": ["AB123"],
        "^[^@\\s]+@[^@\\s]+\\.[a-z]+$": ["a.b@c.de", "é@x.org"],
        "^\\S+( \\S+)*$": ["a bc", 'é "q"'],
        "^[\\w.-]+$": ["a.b-c"],
        "foo": ["a foo b", "foo"],
        '^[^"\\\\]*$': ["ab", ""],
        "^\\+?[0-9 ()/-]{3,}$": ["+49 (30) 1/2-3"],
        "^.{1,3}$": ["é😀", '"\\'],
    }.items():
        texts = [json.dumps(text, ensure_ascii=False) for text in good]
        assert all(accepts("json_schema", json.dumps({"type": "string", "pattern": pattern}), texts)), pattern


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("\\bfoo", r"'\\b'"),
        ("(?=a)b", "lookaround"),
        ("(?<!a)b", "lookaround"),
        ("(a)\\1", r"'\\1'"),
        ("[]", "empty class"),
        ("[^]", "empty class"),
        ("a{,3}", "write '{0,'"),
        ("[b-a]", "ends before it begins"),
        ("(?x)a", "flags 'x'"),
        ("\\ud800", "surrogates"),
        ("[a", "not closed"),
        ("a\\", "ends with a backslash"),
        ("\\p", "name of a property"),
        ("\\k<a>", r"'\\k'"),
    ],
)
def test_what_cannot_be_enforced_is_refused(pattern: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        rust_regex(pattern, is_schema=True)
