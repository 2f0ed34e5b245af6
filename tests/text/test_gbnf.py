"""Grammars in GBNF: texts that derive from them, texts that do not, and errors with a line."""

from __future__ import annotations

import pytest
from constrained_texts import accepts

from rwkv_batch.text.gbnf import lark_of_gbnf

JSON = r"""
root   ::= object  # a comment with "::="
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]*) ("." [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]*
"""


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= ("a" | "ab") "bc"', ["abc", "abbc"], ["ab", "bc"]),
        ('root ::= [a-z]+ "x"\n', ["ax", "axx"], ["a", "x"]),
        ('root ::= ("a" | "ab") "bc" again?\nagain ::= root', ["abc", "abbcabc"], ["abcab"]),
        ('root ::= term ("+" term)*\nterm ::= [1-9] | "(" root ")"\n', ["1", "(1+2)+3"], ["1+", "()"]),
        ('root ::= a "c"\na ::= "" | "b" | a "x"', ["c", "bc", "bxxc", "xc"], ["xb"]),
        ('# c\nroot ::= x # y\n  | "z"{2,3}\nx ::= [a-z]{2} "\\n" |\n', ["ab\n", "zz", ""], ["z", "zzzz"]),
        ('root ::= "a" root "b" | ""', ["", "ab", "aabb"], ["aab"]),
        ('root ::= "a"{0,2} r-x?\nr-x ::= "\\u00e9\\x41" . | r-x "q"', ["aaéAb", "éAé", "éAbqq", ""], ["éA", "q"]),
        ("root ::= [\\]\\-^x]+", ["]-^x"], ["[", ""]),
        ('root ::= "a"{2} "b"{1,} | "\\"" [^\\n] ', ["aab", "aabbb", '"é'], ["ab", '"\n']),
        (JSON, ['{"a": [1.5, true], "b\\n": {"\\u00e9": null}}', "{}"], ['{"a" 1}', '{"a": 01}', "[]"]),
    ],
)
def test_texts_derive_from_the_grammar(grammar: str, good: list[str], bad: list[str]):
    assert accepts("grammar", grammar, [*good, *bad]) == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('root ::= "b"\nx ::= "a', "line 2: cannot read '\"a'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= y", "the rule 'y', which 'root' uses, is not defined"),
        ('root ::= ("a"', r"line 1: a '\(' of the rule 'root' is not closed"),
        ('root ::= "a")', r"line 1: '\)' has no '\('"),
        ('root ::= * "a"', r"line 1: '\*' repeats nothing"),
        ("", "line 1: expected a rule"),
        ('root := "a"', "line 1: cannot read"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule 'root' is defined twice"),
        ("root ::= []", "not closed"),
        ("root ::= [^]", "not closed"),
        ('root ::= "a" ::= "b"', "line 1: '::='"),
        ('root ::= "a"{}', "line 1: '{}' has no number"),
        ('root ::= "\\UFFFFFFFF"', "is no character"),
    ],
)
def test_a_malformed_grammar_names_the_line(grammar: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        lark_of_gbnf(grammar)
