"""Bodies of OpenAI requests: what becomes a sampling field, what has no effect, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.job.input.openai_body import IGNORED, OFF, SAMPLING_NAMES, columns_of
from rwkv_batch.sampling_params import SAMPLING_FIELDS
from rwkv_batch.text.constraint_compiler import ConstraintCompiler

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = json.dumps(SCHEMA)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA},
                }
            },
            {"json_schema": TEXT},
        ),
        ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, {"json_schema": TEXT}),
        ({"guided_json": TEXT, "guided_regex": None}, {"json_schema": TEXT}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", 'b"']}, {"grammar": 'root ::= "a" | "b\\""'}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, {"json_schema": TEXT}),
        ({"structured_outputs": {"json_object": True}}, {"json_schema": '{"type": "object"}'}),
        ({"structured_outputs": {"choice": ["a"]}}, {"grammar": 'root ::= "a"'}),
        ({"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}, {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
        ({"min_tokens": 2, "ignore_eos": True}, {"min_tokens": 2, "ignore_eos": True}),
        ({"stop_token_ids": [1], "allowed_token_ids": [1, 2]}, {"stop_token_ids": [1], "allowed_token_ids": [1, 2]}),
        ({"max_tokens": 3.0, "max_completion_tokens": 3}, {"max_tokens": 3.0}),
        ({"tool_choice": "none", "tools": [{"type": "function"}]}, {}),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, {"tools": [{"type": "function"}]}),
        ({"tools": [], "functions": []}, {}),
        ({"functions": [{"name": "f"}]}, {"tools": [{"name": "f"}]}),
        ({"functions": [{"name": "f"}], "function_call": "none"}, {}),
        ({name: {"any": 1} for name in sorted(IGNORED)}, {}),
        ({name: values[0] for name, values in OFF.items()}, {}),
        (dict.fromkeys((*OFF, "no such name", "response_format", "seed")), {}),
        ({"prompt": ["only"]}, {"prompt": "only"}),
        ({"prompt": [1, 2]}, {"prompt_token_ids": [1, 2]}),
        ({"prompt": [[1, 2]]}, {"prompt_token_ids": [1, 2]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert columns_of(body) == expected


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"logprobs": True}, "body.logprobs is not supported: output.logprobs in the job file"),
        ({"logprobs": 0}, "body.logprobs is not supported"),
        ({"tool_choice": "required"}, "body.tool_choice is not supported: the model decides whether it calls a tool"),
        ({"tools": [{"name": "f"}], "functions": [{"name": "g"}]}, "body.functions: tools is given twice"),
        ({"temprature": 1}, "body.temprature is not supported"),
        ({"response_format": {"type": "json_schema"}}, "body.response_format: json_schema.schema is missing"),
        ({"response_format": "json"}, "body.response_format: got type None"),
        ({"structured_outputs": {"structural_tag": "x"}}, "body.structured_outputs.structural_tag is not supported"),
        ({"structured_outputs": []}, "body.structured_outputs: got a list, expected an object"),
        ({"guided_choice": []}, "body.guided_choice: got a list, expected a list of at least one string"),
        ({"guided_whitespace_pattern": " "}, "body.guided_whitespace_pattern is not supported"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "body.max_completion_tokens: max_tokens is given twice"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "json_schema is given twice"),
        ({"echo": 1}, "body.echo is not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_change_the_result_is_refused(body: dict[str, Any], named: str) -> None:
    with pytest.raises(RowError) as caught:
        columns_of(body)
    assert caught.value.code == "bad_sampling"
    assert named in str(caught.value)


def test_names_of_sampling_params_are_names_of_a_body() -> None:
    assert set(SAMPLING_NAMES.values()) == {name for name, field in SAMPLING_FIELDS.items() if field.in_jobs}


@pytest.mark.parametrize("choices", [["a", "b"], ['"', "\\"], ["line\nbreak", "é漢", "\x01"]])
def test_choices_are_a_grammar_of_these_texts(choices: list[str]) -> None:
    tokens = [b"", *(bytes([byte]) for byte in range(256))]
    columns = columns_of({"guided_choice": choices})
    for choice in choices:
        constraint = ConstraintCompiler(tokens, len(tokens)).compile(**columns)
        for byte in choice.encode():
            constraint.accept(byte + 1)
            assert not constraint.is_finished
        assert constraint.next_tokens()[0]
