"""What vLLM's `StructuredOutputsParams` becomes in `SamplingParams`."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic import BaseModel

from rwkv_batch import SamplingParams, StructuredOutputsParams, sampling_params
from rwkv_batch.errors import ConfigurationError


class Answer(BaseModel):
    yes: bool


SCHEMA = Answer.model_json_schema()


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"json": SCHEMA}, {"json_schema": SCHEMA}),
        ({"json": '{"type": "string"}'}, {"json_schema": '{"type": "string"}'}),
        ({"json": Answer}, {"json_schema": SCHEMA}),
        ({"json_object": True}, {"json_schema": {"type": "object"}}),
        ({"json_object": False, "regex": "a+"}, {"regex": "a+"}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"choice": ["yes", 'n"o\n']}, {"grammar": 'root ::= "yes" | "n\\"o\\n"'}),
        ({"regex": "a+", "backend": "xgrammar"}, {"regex": "a+"}),
    ],
)
@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
def test_a_constraint_is_a_field(given: dict[str, Any], fields: dict[str, Any], name: str) -> None:
    expected = SamplingParams(**fields)
    for value in (given, StructuredOutputsParams(**given), sampling_params.GuidedDecodingParams(**given)):
        assert SamplingParams(**cast("Any", {name: value})) == expected
        changed = SamplingParams()
        setattr(changed, name, value)
        assert changed == expected
        setattr(changed, name, None)
        assert changed == SamplingParams()
    assert SamplingParams(**{**fields, name: None}) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "structured_outputs: got none, expected one of json, regex, choice, grammar, json_object"),
        ({"regex": "a", "json": {}}, "structured_outputs: got json and regex, expected one of"),
        ({"choice": []}, r"structured_outputs.choice: got \[\], expected a list of at least one text"),
        ({"choice": ["a", 3]}, "structured_outputs.choice: got"),
        ({"structural_tag": "{}"}, "structured_outputs.structural_tag: got '{}', which has no equal here"),
        ({"regex": "a", "whitespace_pattern": " "}, "structured_outputs.whitespace_pattern: got ' '"),
        ({"regexp": "a"}, "structured_outputs: got 'regexp', expected one of"),
        (5, "structured_outputs: got int, expected StructuredOutputsParams"),
        ({"regex": 5}, "SamplingParams.regex: got 5, expected text"),
    ],
)
def test_what_is_no_constraint_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SamplingParams(structured_outputs=given)  # type: ignore[call-arg]


def test_a_second_constraint_is_refused() -> None:
    with pytest.raises(ValueError, match="at most one of json_schema, regex, grammar"):
        SamplingParams(regex="a", structured_outputs=StructuredOutputsParams(json=SCHEMA))  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="which has no equal here: leave it out"):
        StructuredOutputsParams(regex="a", disable_any_whitespace=True)


def test_a_class_of_pydantic_is_a_schema() -> None:
    assert SamplingParams(json_schema=Answer).json_schema == SCHEMA  # type: ignore[arg-type]
