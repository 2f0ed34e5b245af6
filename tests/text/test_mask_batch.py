"""Masks of many constraints in one call: those of each constraint alone."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest

from rwkv_batch.text.constraint import SequenceConstraint
from rwkv_batch.text.constraint_compiler import ConstraintCompiler
from rwkv_batch.text.load_tokenizer import load_tokenizer

pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")

TOKENS = load_tokenizer("world", vocab_size=65536, model_path=None).token_bytes
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SIZES = (65529, 65536)
KINDS: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"regex": "(yes|no)( [a-zé中]{1,9}){0,4}"},
    {"grammar": 'root ::= term ("+" term)*\nterm ::= [1-9] | "(" root ")"'},
    {"regex": "a?b?"},
    {"json_schema": {"enum": ["", "ü\n", 3]}},
]


def kind(i: int, size: int) -> dict[str, Any]:
    """A constraint, and for some rows the tokens that their requests permit."""
    permitted = np.ones(size, np.uint8)
    permitted[[0, *range(98, size, 3)]] = 0
    return {**KINDS[i % len(KINDS)], "permitted": permitted if i % 7 == 3 else None}


@pytest.fixture(scope="module", params=SIZES, ids=str)
def compiler(request: pytest.FixtureRequest) -> ConstraintCompiler:
    """World's vocabulary: its last words of a mask are whole, or have bits beyond the last token."""
    return ConstraintCompiler(TOKENS, request.param)


def begin(compiler: ConstraintCompiler, **kind: Any) -> SequenceConstraint:
    row = compiler.start(**kind)
    row.compiled.result()
    return row()


def expected(constraint: SequenceConstraint) -> np.ndarray:
    """[V] bool, by the constraint alone."""
    bits = constraint.next_tokens().astype(bool)
    bits[0] |= not bits.any()
    return bits


def fill(constraints: list[SequenceConstraint]) -> np.ndarray:
    """[n, V] bool, by one call. Every bit of the masks is set before."""
    size = len(constraints[0].vocabulary.tokens)
    masks = np.full((len(constraints), -(-size // 32)), -1, np.int32)
    constraints[0].batch.fill(constraints, masks)
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little").astype(bool)
    assert not bits[:, size:].any()
    return bits[:, :size]


def test_masks_of_a_batch_are_those_of_each_constraint_alone(compiler: ConstraintCompiler):
    """Texts of every kind, in and out of phase; some have ended, some are given a token that is not allowed."""
    draw = random.Random(0)
    size = len(fill([compiler.compile(regex="a")])[0])
    together, alone = ([begin(compiler, **kind(i, size)) for i in range(40)] for _ in range(2))
    batch = together[0].batch
    for _ in range(24):
        found = fill(together)
        for mask, constraint in zip(found, alone, strict=True):
            np.testing.assert_array_equal(mask, expected(constraint))
        token_ids = [draw.choice(np.flatnonzero(mask).tolist()) for mask in found]
        token_ids[draw.randrange(40)] = draw.randrange(1, 60_000)  # most are not allowed
        fed = [i for i in range(40) if draw.random() < 0.8]
        batch.accept([together[i] for i in fed], [token_ids[i] for i in fed])
        for i in fed:
            alone[i].accept(token_ids[i])
        assert [c.is_finished for c in together] == [c.is_finished for c in alone]
    assert 10 < sum(constraint.is_finished for constraint in together) < 40


def test_rows_that_have_ended_allow_the_end_only(compiler: ConstraintCompiler):
    constraints = [compiler.compile(regex="a") for _ in range(3)]
    constraints[0].accept(0)
    constraints[1].work.is_exceeded = True  # another sample of its row has taken too much work
    masks = fill(constraints)
    a = TOKENS.index(b"a")
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[0], [0], [a]]


def test_a_row_of_too_much_work_ends_and_the_others_go_on(compiler: ConstraintCompiler, monkeypatch: Any):
    other = compiler.compile(regex="[a-z]+")
    few = {"step_lexer_fuel": 1, "step_max_items": 2}
    monkeypatch.setattr("rwkv_batch.text.constraint.LIMITS", few)
    hostile = ConstraintCompiler(TOKENS, len(fill([other])[0])).start(regex="[a-z]+( [a-z]+)*x")
    greedy = hostile()
    masks = fill([greedy, other])
    assert greedy.work.is_exceeded and not other.work.is_exceeded
    assert np.flatnonzero(masks[0]).tolist() == [0]
    np.testing.assert_array_equal(masks[1], expected(other))


def test_bans_that_stop_a_text_are_noted_and_those_that_stop_a_complete_one_are_not(compiler: ConstraintCompiler):
    size = len(fill([compiler.compile(regex="a")])[0])
    a, b = TOKENS.index(b"a"), TOKENS.index(b"b")
    permitted = np.ones(size, np.uint8)
    permitted[[0, b]] = 0
    stuck, complete, free = (begin(compiler, regex=regex, permitted=permitted) for regex in ("ab", "a", "aa"))
    batch = stuck.batch
    batch.accept([stuck, complete, free], [a] * 3)
    masks = fill([stuck, complete, free])
    assert [np.flatnonzero(mask).tolist() for mask in masks] == [[0], [0], [a]]
    assert [each.work.is_stuck for each in (stuck, complete, free)] == [True, False, False]


def test_other_threads_run_while_masks_are_filled(compiler: ConstraintCompiler):
    """The interpreter's lock is released: another thread counts on, within one call."""
    constraints = [compiler.compile(json_schema=PERSON) for _ in range(64)]
    fill(constraints)
    masks = np.zeros((64, 2048), np.int32)
    executor = constraints[0].batch._executor
    rows = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
    counted = 0
    is_done = False

    def count() -> None:
        nonlocal counted
        while not is_done:
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(100_000):
            before = counted
            executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], 64)
            if counted > before:
                break
        assert counted > before
    finally:
        is_done = True
        thread.join()
