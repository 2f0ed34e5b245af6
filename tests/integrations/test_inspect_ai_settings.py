"""Inspect's settings: each is followed, or refused by its name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentAudio,
    ContentDocument,
    ContentImage,
    ContentReasoning,
    ContentText,
    ContentVideo,
    GenerateConfig,
    ResponseSchema,
)
from inspect_ai.tool import ToolCall
from inspect_ai.util import JSONSchema

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations.inspect_ai import RwkvBatchAPI
from rwkv_batch.integrations.inspect_ai_messages import conversation_of, said
from rwkv_batch.integrations.inspect_ai_settings import OF_INSPECT, SAME_NAME, TRANSLATED, sampling_params

PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(scope="module")
def api():
    one = RwkvBatchAPI("demo", max_batch_size=4, dtype="float32")
    yield one
    one.close()


def ask(api: RwkvBatchAPI, content: Any = "a", **config: Any) -> Any:
    messages = [ChatMessageSystem(content="s"), ChatMessageUser(content=content)]
    return asyncio.run(api.generate(messages, [], "none", GenerateConfig(**{"max_tokens": 8, **config})))


def params_of(**config: Any) -> SamplingParams:
    return sampling_params(GenerateConfig(**config), ["END"], [7])


def test_settings_of_the_same_name_arrive():
    given: dict[str, Any] = {
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 5,
        "frequency_penalty": 0.6,
        "presence_penalty": 0.7,
        "logit_bias": {8: 9.0},
        "seed": 10,
    }
    assert given.keys() == set(SAME_NAME)
    params = params_of(**given)
    assert {name: getattr(params, name) for name in given} == given


def test_other_settings_are_translated():
    params = params_of(max_tokens=3, num_choices=2, stop_seqs=["x", ""], logprobs=True, prompt_logprobs=4)
    assert (params.max_tokens, params.n, params.logprobs, params.prompt_logprobs) == (3, 2, 0, 4)
    assert (params.stop_strings, list(params.stop_token_ids or ())) == (("END", "x"), [7])
    default = params_of()
    assert (default.max_tokens, default.n, default.logprobs, default.prompt_logprobs) == (2048, 1, None, None)


def test_extra_body_takes_the_sampling_fields_that_inspect_lacks():
    given = {"min_p": 0.1, "penalty_decay": 0.9, "repetition_penalty": 1.2, "top_p_order": "rwkv", "min_tokens": 2}
    params = params_of(extra_body=given, top_p=0.5)
    assert {name: getattr(params, name) for name in given} == given
    assert params.stop_strings == ("END",)
    replaced = params_of(extra_body={"stop": ["Z"]}, stop_seqs=["y"])
    assert (replaced.stop_strings, replaced.stop_token_ids) == (("Z",), None)
    assert list(params_of(extra_body={"stop_token_ids": [9]}).stop_token_ids or ()) == [7, 9]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"best_of": 3}, "best_of: got 3, expected none"),
        ({"reasoning_effort": "high"}, "reasoning_effort: got 'high', expected none"),
        ({"modalities": ["image"]}, "modalities: got"),
        ({"extra_headers": {"a": "b"}}, "extra_headers: got"),
        ({"top_logprobs": 3}, "top_logprobs: got 3 without logprobs"),
        ({"extra_body": {"minp": 1}}, r"extra_body.minp: unknown setting \(did you mean 'min_p'\?\), expected one of"),
        ({"extra_body": {"top_p": 0.5}}, "extra_body.top_p: expected Inspect's own setting top_p"),
        ({"extra_body": {"n": 2}}, "extra_body.n: expected Inspect's own setting num_choices"),
        ({"extra_body": {"min_p": 7}}, "min_p: got 7, expected a number from 0 to 1"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
    ],
)
def test_what_this_model_cannot_follow_is_refused_by_its_name(api, config, message):
    with pytest.raises(ValueError, match=message):
        ask(api, **config)


VALUES: dict[str, Any] = {
    "best_of": 2,
    "fallback_models": ["m"],
    "verbosity": "low",
    "effort": "low",
    "reasoning_effort": "low",
    "reasoning_mode": "pro",
    "reasoning_tokens": 9,
    "reasoning_summary": "auto",
    "extra_headers": {"a": "b"},
    "modalities": ["image"],
}


def test_every_setting_of_inspect_is_followed_or_refused():
    """A setting that a later version of Inspect adds is refused until it is listed."""
    for name in GenerateConfig.model_fields:
        if name not in (*SAME_NAME, *TRANSLATED, *OF_INSPECT):
            with pytest.raises(ValueError, match=f"^{name}: got"):
                sampling_params(GenerateConfig(**{name: VALUES[name]}))
    assert {*SAME_NAME, *TRANSLATED, *OF_INSPECT} <= GenerateConfig.model_fields.keys()
    sampling_params(GenerateConfig(timeout=9, attempt_timeout=3, max_retries=1, cache_prompt=False, system_message="s"))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (ContentImage(image=PNG), "image"),
        (ContentAudio(audio="a.mp3", format="mp3"), "audio"),
        (ContentVideo(video="a.mp4", format="mp4"), "video"),
        (ContentDocument(document="a.pdf", filename="a.pdf", mime_type="application/pdf"), "document"),
    ],
)
def test_content_that_is_no_text_is_refused_by_its_name(api, part, name):
    with pytest.raises(ValueError, match=f"content: got {name} in a message of role user, expected text"):
        ask(api, [ContentText(text="What is this?"), part])


def test_tool_calls_are_refused(api):
    called = ChatMessageAssistant(content="", tool_calls=[ToolCall(id="1", function="f", arguments={})])
    with pytest.raises(ValueError, match="tool_calls: got a message with tool calls"):
        conversation_of([ChatMessageUser(content="a"), called])


def test_parts_of_text_are_joined_and_thoughts_are_kept():
    message = ChatMessageAssistant(content=[ContentReasoning(reasoning="so"), ContentText(text="4")])
    assert conversation_of([ChatMessageUser(content=[ContentText(text="a"), ContentText(text="b")]), message]) == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "<think>so</think>4"},
    ]


@pytest.mark.parametrize(
    ("prompt", "completion", "thought", "text"),
    [
        ("User: a\n\nAssistant:", " 4 ", None, "4"),
        ("User: a\n\nAssistant:", " <think>2+2</think>\n4", "2+2", "4"),
        ("Assistant: <think", ">\n2+2\n</think>\n\n4", "2+2", "4"),
        ("Assistant: <think", ">still at", "still at", ""),
        ("Assistant: <think>\n", "2+2</think>4", "2+2", "4"),
        ("Assistant: <think", " aloud", None, "aloud"),
        ("Assistant: <think></think", ">4", None, "4"),
        ("Assistant: <think></think>", "4", None, "4"),
        ("<think>\n\n</think>\n\n", "4 </think>", None, "4 </think>"),
        ("User: <think>a</think> b\n\nAssistant:", "4", None, "4"),
    ],
)
def test_thoughts_are_told_from_the_answer(prompt, completion, thought, text):
    assert said(prompt, completion) == (thought, text)


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "size": {"type": "boolean"}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("think", ["none", "fake"])
def test_a_response_schema_is_followed(think):
    one = RwkvBatchAPI("demo", max_batch_size=2, dtype="float32", think=think)
    schema = ResponseSchema(name="city", json_schema=JSONSchema.model_validate(SCHEMA))
    output = ask(one, "A city?", response_schema=schema, max_tokens=60, temperature=1.0, seed=4)
    pytest.importorskip("jsonschema").validate(json.loads(output.completion), SCHEMA)
    with pytest.raises(ValueError, match=r"expected none beside response_schema"):
        ask(one, response_schema=schema, extra_body={"json_schema": SCHEMA})
    one.close()


def test_a_response_schema_allows_no_thought():
    one = RwkvBatchAPI("demo", max_batch_size=2, dtype="float32", think="open")
    schema = ResponseSchema(name="city", json_schema=JSONSchema.model_validate(SCHEMA))
    with pytest.raises(ValueError, match=r"think: got an open thought beside json_schema, .* 'none' or 'fake'"):
        ask(one, response_schema=schema)
    one.close()


def test_exactly_as_many_top_logprobs_come_as_were_asked_for(api):
    """The sampled token is often none of the most likely ones. The log-probabilities are those of `LLM.score`."""
    output = ask(api, "import ", logprobs=True, top_logprobs=3, temperature=4.0, seed=1, max_tokens=40)
    content = output.choices[0].logprobs.content
    assert len(content) > 10
    assert {len(one.top_logprobs) for one in content} == {3}
    assert any(one.token not in [top.token for top in one.top_logprobs] for one in content)
    for one in content:
        found = [top.logprob for top in one.top_logprobs]
        assert found == sorted(found, reverse=True) and one.logprob <= found[0]
    alone = ask(api, "import ", logprobs=True, temperature=4.0, seed=1, max_tokens=40)
    assert [one.top_logprobs for one in alone.choices[0].logprobs.content] == [[]] * len(content)


def test_prompt_logprobs_are_those_of_a_score(api):
    output = ask(api, "import os", prompt_logprobs=2, max_tokens=1)
    found = output.choices[0].prompt_logprobs.content
    text = "System: s\n\nUser: import os\n\nAssistant:"
    with LLM("demo", dtype="float32", max_batch_size=2) as llm:
        (expected,) = llm.score([("", text)])
    assert [one.logprob for one in found] == pytest.approx(expected.token_logprobs, abs=1e-5)
    assert "".join(one.token for one in found) == text
    assert {len(one.top_logprobs) for one in found} == {2}


def test_the_model_arguments_choose_the_chat_format(tmp_path):
    one = RwkvBatchAPI("demo", max_batch_size=2, dtype="float32", chat_format="function_calling", think="open")
    again = ord(">") + 1
    output = ask(one, "a", logit_bias={again: 100.0}, max_tokens=4, prompt_logprobs=1)
    prompt = "".join(token.token for token in output.choices[0].prompt_logprobs.content)
    assert prompt == one.llm.chat_format.render([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}])
    assert prompt.endswith("### Assistant\n<think")
    (thought, text) = output.choices[0].message.content
    assert (thought.reasoning, text.text, output.completion) == (">>>", "", "")
    one.close()
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ mark }}{% endfor %}<assistant>")
    one = RwkvBatchAPI("demo", max_batch_size=2, dtype="float32", chat_template=str(template), add_bos_token=False)
    output = ask(one, "a", max_tokens=1, prompt_logprobs=1, extra_body={"chat_template_kwargs": {"mark": "!"}})
    prompt = "".join(token.token for token in output.choices[0].prompt_logprobs.content)
    assert prompt == "<system>s!<user>a!<assistant>"[1:]  # the first token has no log-probability
    one.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtyp": "float32"}, r"-M: unknown argument 'dtyp' \(did you mean 'dtype'\?\), expected one of add_bos_token"),
        ({"thnk": "open"}, r"-M: unknown argument 'thnk' \(did you mean 'think'\?\)"),
        ({"think": "loud"}, "think: got 'loud', expected none, open or fake"),
        ({"chat_format": "bott"}, r"chat_format: got 'bott', expected auto, .*template \(did you mean 'bot'"),
        ({"chat_template": "{% if"}, "chat_template: "),
        ({"chat": {"format": "bot"}, "think": "open"}, "chat: expected none beside chat_format"),
        ({"add_bos_token": "yes"}, "add_bos_token: got 'yes', expected true or false"),
        ({"base_url": "http://x"}, "base_url: got 'http://x', expected none"),
        ({"tokenizer": None}, "tokenizer: got None, expected a tokenizer"),
        ({"dtype": "float31"}, "float31"),
    ],
)
def test_wrong_model_arguments_are_one_sentence(arguments, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        RwkvBatchAPI("demo", **arguments)
    assert type(caught.value).__mro__[1].__name__ == "PrerequisiteError"  # Inspect prints it without a traceback


def test_a_missing_model_is_one_sentence():
    with pytest.raises(ConfigurationError, match=r"no such model\.pth"):
        RwkvBatchAPI("no such model.pth")
