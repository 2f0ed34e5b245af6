"""Thoughts at the end of prompts."""

from __future__ import annotations

from typing import Any

import pytest

from rwkv_batch import SamplingParams
from rwkv_batch.errors import RowError
from rwkv_batch.text.thoughts import begun_thought, constrained_prompt

CONSTRAINTS: list[dict[str, Any]] = [{"json_schema": {"type": "object"}}, {"regex": "a"}, {"grammar": 'root ::= "a"'}]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_constrained_text_begins_after_a_closed_thought(constraint: Any) -> None:
    params = SamplingParams(**constraint)
    assert constrained_prompt("Assistant:", params) == "Assistant:"
    assert constrained_prompt("Assistant: <think></think", params) == "Assistant: <think></think>"
    assert constrained_prompt("Assistant: <think></think>\n", params) == "Assistant: <think></think>\n"
    for opened in ("Assistant: <think", "Assistant: <think>", "Assistant: <think>\n"):
        with pytest.raises(RowError, match="think: got an open thought beside ") as caught:
            constrained_prompt(opened, params)
        assert caught.value.code == "bad_sampling"


def test_a_free_text_begins_as_it_likes() -> None:
    for prompt in ("Assistant:", "Assistant: <think", "Assistant: <think></think"):
        assert constrained_prompt(prompt, SamplingParams()) == prompt


def test_only_the_end_of_a_prompt_is_a_thought() -> None:
    assert begun_thought("a <think b") == ""
    assert begun_thought("a <think>\n\n</think>\n") == "<think>\n\n</think>\n"
