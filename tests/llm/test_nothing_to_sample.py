"""Bans that leave nothing to sample: refused before the first step, or an error row, and never a banned token."""

from __future__ import annotations

import pytest
from checkpoints import make_checkpoint, write_checkpoint

from rwkv_batch import LLM, SamplingParams

A, B, C = (ord(letter) + 1 for letter in "abc")
"""Token ids of the tokenizer "bytes"."""
BANS = [
    {"allowed_token_ids": [66], "bad_token_ids": [66]},
    {"bad_token_ids": [*range(257)]},
    {"allowed_token_ids": [0], "min_tokens": 2},
    {"allowed_token_ids": [0], "ignore_eos": True},
]
CONSTRAINED_BANS = [
    {"regex": "a+", "bad_token_ids": [A]},
    {"regex": "a*", "allowed_token_ids": [B]},
    {"json_schema": {"type": "boolean"}, "allowed_token_ids": [A, B]},
    {"grammar": 'root ::= "a"', "allowed_token_ids": [0]},
]


@pytest.mark.parametrize("bans", [*BANS, *CONSTRAINED_BANS], ids=str)
def test_it_is_refused_for_all_and_an_error_row_for_one(llm, bans):
    if bans in CONSTRAINED_BANS:
        pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")
    params = SamplingParams(max_tokens=4, **bans)
    steps = llm.stats().steps
    with pytest.raises(ValueError, match="nothing may be sampled"):
        llm.generate(["a"], params)
    assert llm.stats().steps == steps
    bad, good = llm.generate(["a", "a"], [params, SamplingParams(max_tokens=4)])
    assert (bad.error_code, good.error_code) == ("bad_sampling", None)
    assert "nothing may be sampled" in bad.error and bad.outputs[0].token_ids == []
    assert len(good.outputs[0].token_ids) == 4


def test_ids_without_bytes_are_not_left(tmp_path):
    """A vocabulary of 300 with the tokenizer "bytes": ids from 257 on have no bytes and are never sampled."""
    path = write_checkpoint(make_checkpoint("7.0", vocab=300), tmp_path / "model.pth")
    refused = pytest.raises(ValueError, match="nothing may be sampled: allowed_token_ids leaves no token")
    with LLM(path, tokenizer="bytes", max_batch_size=2) as llm, refused:
        llm.generate(["a"], SamplingParams(allowed_token_ids=[299]))
    with LLM(path, tokenizer=None, max_batch_size=2) as llm:
        (output,) = llm.generate([[1]], SamplingParams(allowed_token_ids=[299], max_tokens=2))
        assert output.outputs[0].token_ids == [299, 299]


@pytest.fixture
def structured():
    return pytest.importorskip("llguidance", reason="structured output needs the extra 'structured'")


@pytest.mark.parametrize("bans", [{"bad_token_ids": [A]}, {"allowed_token_ids": [0, B, C]}], ids=str)
def test_a_constraint_and_bans_hold_together(llm, structured, bans):
    for seed in range(5):
        params = SamplingParams(regex="[a-c]{6}", max_tokens=8, seed=seed, **bans)
        (output,) = llm.generate(["x"], params)
        assert len(output.outputs[0].text) == 6 and set(output.outputs[0].text) <= {"b", "c"}
        assert output.outputs[0].finish_reason == "stop"


def test_a_text_that_bans_end_before_it_is_complete_is_an_error_row(llm, structured):
    """After "a" the constraint asks for "b", which is banned. The other row is served."""
    bad = SamplingParams(regex="ab|cc", bad_token_ids=[B, C], max_tokens=8)
    found, other = llm.generate(["x", "x"], [bad, SamplingParams(regex="ab", max_tokens=8)])
    assert found.error_code == "bad_sampling"
    assert (
        found.error == "regex: nothing may be sampled: in a text that is not complete, every possible token is banned"
    )
    assert other.outputs[0].text == "ab"


def test_a_text_that_is_complete_ends_even_where_the_end_of_text_is_banned(llm, structured):
    for bans in ({"allowed_token_ids": [A]}, {"bad_token_ids": [0]}, {"min_tokens": 8}):
        (output,) = llm.generate(["x"], SamplingParams(regex="aaa", max_tokens=8, **bans))
        found = output.outputs[0]
        assert (found.text, found.finish_reason, found.stop_reason) == ("aaa", "stop", 0), bans
