"""Compiling constraints: the cache, and the limits of time and size."""

from __future__ import annotations

import random
import sys
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.errors import ConfigurationError, MissingExtraError, RowError
from rwkv_batch.text import constraint, constraint_compiler, constraint_grammar
from rwkv_batch.text.constraint import Vocabulary
from rwkv_batch.text.constraint_compiler import ConstraintCompiler
from rwkv_batch.text.schema_support import Refused

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

TOKENS = [None, *(bytes([byte]) for byte in range(256)), b"a" * 32]
V = len(TOKENS)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def slow(number: int) -> dict[str, Any]:
    """A schema that takes 4 s to compile with 3,000 properties, and 24 s with 8,000."""
    return {"type": "object", "properties": {f"name_{i}": {} for i in range(number)}}


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(TOKENS, V, timeout=600.0)


def code_of(compiler: ConstraintCompiler, **kind: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as refused:
        compiler.compile(**kind)
    return refused.value.code, refused.value.message


def test_a_constraint_is_compiled_once(compiler: ConstraintCompiler) -> None:
    first = compiler.start(json_schema={"type": "string", "maxLength": 11})
    assert compiler.start(json_schema='{"type": "string", "maxLength": 11}').compiled is first.compiled
    assert compiler.start(json_schema={"type": "string", "maxLength": 12}).compiled is not first.compiled


def test_an_error_is_remembered(compiler: ConstraintCompiler) -> None:
    assert code_of(compiler, regex="(a")[0] == "bad_sampling"
    assert compiler.start(regex="(a").compiled.done()


def test_the_cache_is_bounded_in_bytes(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.start(regex="first")
    monkeypatch.setattr(constraint_compiler, "CACHE_BYTES", 100_000)
    for i in range(20):
        compiler.compile(regex=f"{i}")
    assert compiler.start(regex="first").compiled is not first.compiled
    assert compiler._num_bytes == sum(compiler._sizes.values()) <= 100_000
    assert first().next_tokens().any()  # whoever has it can use it


def test_compiling_that_takes_too_long() -> None:
    compiler = ConstraintCompiler(TOKENS, V, timeout=0.5)
    late, good = compiler.start(json_schema=slow(8000)), compiler.start(regex="good")
    assert good.compiled.result() and good.error() is None
    expected = "json_schema: compiling takes more than constraint_timeout (0.5 s); simplify it"
    assert code_of(compiler, json_schema=slow(8000)) == ("constraint_too_large", expected)
    assert late.error().code == "constraint_too_large"


def test_a_schema_that_is_nested_too_deeply(compiler: ConstraintCompiler) -> None:
    expected = "constraint_too_large", "json_schema: is nested too deeply"
    assert code_of(compiler, json_schema=deep(3000)) == expected
    text = '{"type": "array", "items": ' * 3000 + "{}" + "}" * 3000
    assert code_of(compiler, json_schema=text) == expected
    nested: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        nested = {"type": "array", "items": nested, "maxItems": 2}
    assert code_of(compiler, json_schema=nested) == expected


def test_a_text_that_is_too_long(compiler: ConstraintCompiler) -> None:
    code, message = code_of(compiler, regex="a" * ((1 << 20) + 1))
    assert (code, message) == ("constraint_too_large", "regex: has 1048577 characters, expected at most 1048576")


@pytest.mark.parametrize("regex", ["(a*)*b", "(a|b)*a(a|b){30}c", "((a{1000}){1000}){1000}"])
def test_a_regex_takes_linear_time(compiler: ConstraintCompiler, regex: str) -> None:
    text = compiler.compile(regex=regex)
    for _ in range(100):
        text.accept(TOKENS.index(b"a"))
    assert text.next_tokens().any()


def test_many_required_properties(compiler: ConstraintCompiler) -> None:
    names = [f"name_{i}" for i in range(500)]
    schema = {"type": "object", "properties": {name: {"type": "string", "minLength": 1} for name in names}}
    assert compiler.compile(json_schema={**schema, "required": names}).next_tokens().any()


def test_a_grammar_with_more_rules_than_llguidance_can_count(compiler: ConstraintCompiler) -> None:
    alternatives = " | ".join(f'"w{i}" root' for i in range(20_000))
    expected = "constraint_too_large", "grammar: has too many rules or alternatives to be compiled"
    assert code_of(compiler, grammar=f'root ::= {alternatives} | ""') == expected


def test_a_grammar_beyond_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(constraint.LIMITS, "max_grammar_size", 5)
    with pytest.raises(Refused) as refused:
        constraint_grammar.check(Vocabulary.of(TOKENS, V, 0), constraint_grammar.grammar_of("json_schema", "{}"))
    assert refused.value.is_too_large, refused.value


def test_a_step_beyond_the_limits_ends_the_texts_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(constraint.LIMITS, "max_items_in_row", 3)
    compiler = ConstraintCompiler(TOKENS, V)
    vocabulary = compiler._vocabulary
    row = constraint_compiler.RowConstraint("grammar", Future())
    ambiguous = constraint_grammar.grammar_of("grammar", "root ::= x x x x\nx ::= x | [ab]* | [a-c]* | root")
    row.compiled.set_result(constraint.CompiledConstraint(ambiguous, vocabulary))
    text, other = row(), row()
    assert row.error() is None
    text.accept(TOKENS.index(b"a"))
    assert not text.next_tokens().any()
    assert row.error().code == "constraint_too_large"
    assert "takes too much work" in row.error().message
    masks = np.zeros((2, -(-V // 32)), np.int32)
    other.batch.fill([text, other], masks)
    assert masks[0, 0] == 1 and not masks[0, 1:].any()  # end of text, token 0, and nothing else


def test_a_text_does_not_end_because_of_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts of a constraint share a lexer, which the states of earlier texts fill."""
    monkeypatch.setitem(constraint.LIMITS, "max_lexer_states", 400)
    compiler = ConstraintCompiler(TOKENS, 288)  # a mask of whole words, to which llguidance adds one
    regex = "[ab]*a[ab]{12}c"
    ids, first = [TOKENS.index(b"a"), TOKENS.index(b"b")], compiler.compile(regex=regex)
    compiled, dice = first._compiled, random.Random(0)
    matcher = compiled.matcher
    for _ in range(40):
        row = constraint_compiler.RowConstraint("regex", Future())
        row.compiled.set_result(compiled)
        alone, beside = row(), row()
        for _ in range(30):
            token_id = dice.choice(ids)
            masks = np.zeros((1, 9), np.int32)
            beside.batch.fill([beside], masks)
            assert alone.next_tokens()[ids].all() and masks.any()
            alone.accept(token_id)
            beside.batch.accept([beside], [token_id])
        assert row.error() is None
        assert not alone.is_finished and not beside.is_finished
    assert compiled.matcher is not matcher


def test_a_process_without_memory_is_a_constraint_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(constraint_grammar, "check", fail)
    answer = constraint_grammar.answer_compilations(Vocabulary.of(TOKENS, V, 0))
    assert answer(("regex", "a")) == (None, "compiling takes too much memory", True)


def test_missing_extra_is_named_when_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = ConstraintCompiler(TOKENS, V)
    with pytest.raises(MissingExtraError, match=r"rwkv_batch\[structured\]"):
        compiler.compile(regex="a")


def test_a_row_whose_constraint_is_too_large_is_an_error_and_the_others_are_served() -> None:
    with LLM("demo", device="cpu", max_batch_size=4, constraint_timeout=1.0) as llm:
        params = [
            SamplingParams(max_tokens=4, json_schema=slow(8000)),
            SamplingParams(max_tokens=4, regex="[a-c]{2}"),
            SamplingParams(max_tokens=4),
        ]
        outputs = dict(llm.generate_iter(["a", "b", "c"], params))
        assert [outputs[i].error_code for i in range(3)] == ["constraint_too_large", None, None]
        assert outputs[1].outputs[0].text.strip("abc") == ""
        (again,) = llm.generate(["a"], params[:1])
        assert again.error is not None and "json_schema: compiling takes more than" in again.error


def test_a_timeout_is_above_0() -> None:
    with pytest.raises(ConfigurationError, match="constraint_timeout: got 0, expected a number of seconds above 0"):
        LLM("demo", constraint_timeout=0)
