"""Compiling constraints: the cache, and the limits of time and size."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.errors import ConfigurationError, MissingExtraError, RowError
from rwkv_batch.text import constraint, constraint_compiler
from rwkv_batch.text.constraint import CompiledConstraint, Refused, StepTime
from rwkv_batch.text.constraint_compiler import ConstraintCompiler

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

TOKENS = [None, *(bytes([byte]) for byte in range(256)), b"a" * 32]
V = len(TOKENS)


def deep(levels: int) -> dict[str, Any]:
    """A schema that takes 6 s to compile with 300 levels, and minutes with 600."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


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
    monkeypatch.setattr(constraint_compiler, "CACHE_BYTES", 10_000)
    for i in range(20):
        compiler.compile(regex=f"{i}")
    assert compiler.start(regex="first").compiled is not first.compiled
    assert compiler._num_bytes == sum(compiler._sizes.values()) <= 10_000
    assert first().next_tokens().any()  # whoever has it can use it


def test_compiling_that_takes_too_long() -> None:
    compiler = ConstraintCompiler(TOKENS, V, timeout=0.5)
    slow, good = compiler.start(json_schema=deep(300)), compiler.start(regex="good")
    assert good.compiled.result() and good.error() is None
    expected = "json_schema: compiling takes more than constraint_timeout (0.5 s); simplify it"
    assert code_of(compiler, json_schema=deep(300)) == ("constraint_too_large", expected)
    assert slow.error().code == "constraint_too_large"


def test_a_schema_that_is_nested_too_deeply(compiler: ConstraintCompiler) -> None:
    expected = "constraint_too_large", "json_schema: is nested too deeply"
    assert code_of(compiler, json_schema=deep(3000)) == expected
    text = '{"type": "array", "items": ' * 3000 + "{}" + "}" * 3000
    assert code_of(compiler, json_schema=text) == expected


def test_a_text_that_is_too_long(compiler: ConstraintCompiler) -> None:
    code, message = code_of(compiler, regex="a" * ((1 << 20) + 1))
    assert (code, message) == ("constraint_too_large", "regex: has 1048577 characters, expected at most 1048576")


def test_steps_that_are_slow_from_the_first_tokens_on(compiler: ConstraintCompiler) -> None:
    """Every split of the letters into repetitions is followed: the time grows with their number."""
    code, message = code_of(compiler, regex="(a*)*b")
    assert code == "constraint_too_large"
    assert message.startswith("regex: finding the allowed tokens of ")


def test_a_compiled_constraint_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    import xgrammar

    vocabulary = constraint.Vocabulary.of(TOKENS, V, 0)
    monkeypatch.setattr(constraint, "COMPILED_BYTES", 1000)
    with pytest.raises(Refused, match="at most 0 MiB") as refused:
        constraint._compile(xgrammar.GrammarCompiler(vocabulary.tokenizer_info()), vocabulary, "regex", "[a-z]{9}")
    assert refused.value.is_too_large


def test_slow_steps_of_a_row_end_its_texts(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    row = compiler.start(regex="a+")
    row.compiled.result()
    row._step_time = StepTime(0.0)
    assert row().next_tokens()[TOKENS.index(b"a")]  # a step below SLOW_SECONDS takes nothing of it
    monkeypatch.setattr(constraint, "SLOW_SECONDS", -1.0)
    first, second = row(), row()
    assert row.error() is None
    first.next_tokens()
    assert row.error().code == "constraint_too_large"
    assert not first.next_tokens().any() and not second.next_tokens().any()


def test_a_process_without_memory_is_a_constraint_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> CompiledConstraint:
        raise MemoryError

    monkeypatch.setattr(constraint, "_compile", fail)
    answer = constraint.answer_compilations(constraint.Vocabulary.of(TOKENS, V, 0))
    assert answer(("regex", "a")) == (None, "compiling takes too much memory", True)


def test_missing_extra_is_named_when_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    compiler = ConstraintCompiler(TOKENS, V)
    with pytest.raises(MissingExtraError, match=r"rwkv_batch\[structured\]"):
        compiler.compile(regex="a")


def test_a_row_whose_constraint_is_too_large_is_an_error_and_the_others_are_served() -> None:
    with LLM("demo", device="cpu", max_batch_size=4, constraint_timeout=1.0) as llm:
        params = [
            SamplingParams(max_tokens=4, json_schema=deep(300)),
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
