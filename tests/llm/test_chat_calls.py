"""`LLM.chat`, `LLM(chat=...)` and messages in `generate`: formats, stops, errors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from rwkv_batch import LLM, ChatSettings, SamplingParams
from rwkv_batch.errors import ConfigurationError

HELLO = [{"role": "user", "content": "2+2?"}]
RUN_ON = r" 4\n\nUser: 9\+9\?\n\nAssistant: 18"
"""What a model writes that goes on with the next turn: a regular expression forces it out of the bundled model."""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("demo", device="cpu", dtype="float32", max_batch_size=8)


def texts(outputs: list[Any]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


@pytest.mark.parametrize(
    ("stop", "text"),
    [(None, " 4"), ([], " 4\n\nUser: 9+9?\n\nAssistant: 18"), (["9?"], " 4\n\nUser: 9+"), ("4", " ")],
)
def test_a_turn_of_the_assistant_ends_unless_stop_is_given(llm: LLM, stop: Any, text: str) -> None:
    params = SamplingParams(max_tokens=64, regex=RUN_ON, stop=stop)
    assert texts(llm.chat(HELLO, params)) == [text]
    assert texts(llm.generate([{"messages": HELLO}, {"messages": HELLO}], params)) == [text, text]
    assert texts(llm.generate("User: 2+2?\n\nAssistant:", SamplingParams(max_tokens=64, regex=RUN_ON))) == [
        " 4\n\nUser: 9+9?\n\nAssistant: 18"
    ]


@pytest.mark.parametrize(
    ("chat", "regex", "text", "stop"),
    [
        ({"format": "bot"}, "4✿\nUser✿", "4", "✿"),
        ({"format": "bot", "think": "fake"}, "a</think>4✿", "a</think>4", "✿"),
        (ChatSettings("function_calling"), "call\n### Tool Output", "call", "\n### Tool Output"),
        (ChatSettings("function_calling"), "4\n### User", "4", "\n### User"),
    ],
)
def test_each_format_ends_at_its_own_stops(llm: LLM, chat: Any, regex: str, text: str, stop: str) -> None:
    (output,) = llm.chat(HELLO, SamplingParams(max_tokens=64, regex=regex), chat=chat)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == (text, stop)


def test_one_conversation_or_several_of_several_formats(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1)
    assert [one.prompt for one in llm.chat(HELLO, params)] == ["User: 2+2?\n\nAssistant:"]
    assert [one.prompt for one in llm.chat([HELLO, HELLO], params, chat={"format": "bot"})] == ["User✿2+2?✿\nBot✿"] * 2
    bot = llm.chat([HELLO], params, chat={"format": "bot"})[0]
    bad = [*HELLO, {"role": "user", "content": 5}]
    prompts: list[Any] = ["a", {"messages": HELLO}, {"messages": bad}]
    mixed = llm.generate(prompts, params)
    assert [one.prompt for one in mixed] == ["a", "User: 2+2?\n\nAssistant:", None]
    assert (mixed[2].error_code, bot.error_code) == ("bad_messages", None)


def test_options_of_a_call(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1)
    source = "{{ messages[-1].content }}{{ ' open' if add_generation_prompt }}{{ x }}{{ tools[0].function.name }}"
    options: dict[str, Any] = {"chat_template": source, "chat_template_kwargs": {"x": "!"}, "tools": [{"name": "f"}]}
    assert llm.chat(HELLO, params, **options)[0].prompt == "2+2? open!f"
    assert llm.chat(HELLO, params, add_generation_prompt=False, **options)[0].prompt == "2+2?!f"
    continued = [*HELLO, {"role": "assistant", "content": "It is"}]
    found = llm.chat(continued, params, add_generation_prompt=False, continue_final_message=True)
    assert found[0].prompt == "User: 2+2?\n\nAssistant: It is"
    tools = [{"name": "now", "description": "The time."}]
    assert "now" in str(llm.chat(HELLO, params, tools=tools)[0].prompt)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([None], r"conversation 0: got None, expected a list of messages"),
        ([HELLO, "hi"], r"conversation 1: got 'hi', expected a list of messages"),
        ([HELLO, ["hi"]], r"conversation 1: got \['hi'\], expected a list of messages"),
        ([*HELLO, "hi"], r"messages: got \[\{.*\}, 'hi'\], expected a list of messages"),
    ],
)
def test_the_conversation_that_is_none_is_named(llm: LLM, messages: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        llm.chat(messages)


def test_conversations_come_as_pandas_holds_them(llm: LLM) -> None:
    """A column of lists that pandas has read from a Parquet file holds arrays, also inside of messages."""
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    calls = _array([{"function": {"name": "f", "arguments": "{}"}}])
    call = {"role": "assistant", "content": None, "tool_calls": calls}
    talk = _array([{"role": "user", "content": _array(parts)}, call, {"role": "tool", "content": "4"}])
    params = SamplingParams(max_tokens=1)
    prompt = llm.chat(talk, params)[0].prompt
    turns = ["User: 2+2?", 'Assistant: ```json\n{"name":"f","arguments":{}}\n```', "User: Function output:\n4"]
    assert prompt == "\n\n".join([*turns, "Assistant:"])
    assert [one.prompt for one in llm.chat(_array([talk, HELLO]), params)] == [prompt, "User: 2+2?\n\nAssistant:"]
    assert llm.generate({"messages": talk}, params)[0].prompt == prompt
    tools: Any = _array([{"name": "f", "parameters": {"required": _array(["a"])}}])
    assert "f" in str(llm.chat(talk, params, tools=tools)[0].prompt)


def _array(items: list[Any]) -> np.ndarray:
    found = np.empty(len(items), object)
    found[:] = items
    return found


def test_an_unknown_argument_is_of_chat(llm: LLM) -> None:
    with pytest.raises(ConfigurationError, match=r"tool: LLM\.chat has no such argument \(did you mean 'tools'\?\)"):
        llm.chat(HELLO, tool=[])


NUMBER: Any = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
CONSTRAINTS: list[dict[str, Any]] = [{"json_schema": NUMBER}, {"regex": "(yes|no)"}, {"grammar": 'root ::= "yes"'}]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("name", ["rwkv", "bot", "function_calling"])
def test_a_constraint_allows_no_thought(llm: LLM, constraint: dict[str, Any], name: str) -> None:
    """The text after an open thought would be no thought; a closed one is complete before the text begins."""
    params = SamplingParams(max_tokens=20, **constraint)
    fake = llm.chat(HELLO, params, chat={"format": name, "think": "fake"})[0]
    assert str(fake.prompt).endswith("<think></think>") and fake.outputs[0].finish_reason == "stop"
    free = llm.chat(HELLO, SamplingParams(max_tokens=1), chat={"format": name, "think": "fake"})[0]
    assert str(free.prompt).endswith("<think></think")
    (field,) = constraint
    named = rf"got an open thought beside {field}, .*; expected think 'none' or 'fake'"
    with pytest.raises(ConfigurationError, match=rf"^chat\.think: {named}"):
        llm.chat(HELLO, params, chat={"format": name, "think": "open"})
    some = llm.chat([HELLO, HELLO], [params, SamplingParams(max_tokens=1)], chat={"format": name, "think": "open"})
    assert [one.error_code for one in some] == ["bad_sampling", None]
    assert re.search(named, str(some[0].error))


def test_a_template_that_opens_a_thought_may_close_it(llm: LLM) -> None:
    source = "{{ messages[0].content }}{{ '<think>' if enable_thinking is not defined or enable_thinking }}"
    params = SamplingParams(max_tokens=9, regex="yes")
    opened = llm.chat(HELLO, params, chat_template=source)[0]
    assert opened.error_code == "bad_sampling"
    closed = llm.chat(HELLO, params, chat_template=source, chat_template_kwargs={"enable_thinking": False})[0]
    assert (closed.prompt, closed.outputs[0].text) == ("2+2?", "yes")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ([1], r"chat_template_kwargs: got \[1\], expected a mapping of names"),
        ({1: 2}, r"chat_template_kwargs: got \{1: 2\}, expected a mapping of names"),
        ({"enable_thinking": "no"}, r"chat_template_kwargs\.enable_thinking: got 'no', expected True or False"),
    ],
)
def test_names_that_are_none_are_an_error_of_their_prompt(llm: LLM, names: Any, named: str) -> None:
    bad, good = llm.generate(
        [{"messages": HELLO, "chat_template_kwargs": names}, {"messages": HELLO}], SamplingParams(max_tokens=1)
    )
    assert (bad.error_code, good.error_code) == ("bad_messages", None)
    assert re.search(named, str(bad.error))


@pytest.mark.parametrize("name", ["rwkv", "bot", "function_calling"])
def test_names_of_a_call_open_and_close_the_thought_of_each_format(llm: LLM, name: str) -> None:
    params = SamplingParams(max_tokens=1)
    meanings: dict[str, list[dict[str, Any]]] = {
        "open": [{"enable_thinking": True}, {"rwkv_generation_prompt": "open_think"}],
        "fake": [{"enable_thinking": False}, {"rwkv_generation_prompt": "fake_think"}],
        "none": [{}, {"enable_thinking": None}, {"documents": []}],
    }
    for think, names in meanings.items():
        expected = llm.chat(HELLO, params, chat={"format": name, "think": think})[0].prompt
        for other in ("none", "open", "fake") if think != "none" else ("none",):
            for given in names:
                chat = {"format": name, "think": other}
                assert llm.chat(HELLO, params, chat=chat, chat_template_kwargs=given)[0].prompt == expected


def test_a_prompt_of_messages_in_generate_is_refused_as_a_row() -> None:
    with LLM("demo", device="cpu", dtype="float32", max_batch_size=4, chat={"think": "open"}) as llm:
        prompts: list[Any] = [{"messages": HELLO}, "a <think"]
        found = llm.generate(prompts, SamplingParams(max_tokens=9, regex="yes"))
    assert [one.error_code for one in found] == ["bad_sampling", None]
    assert found[1].outputs[0].text == "yes"


@pytest.mark.parametrize("messages", ["hi", [], {"role": "user", "content": "hi"}, None])
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of messages, or of conversations"):
        llm.chat(messages)


@pytest.mark.parametrize(
    ("chat", "named"),
    [
        ({"format": "bto"}, r"chat\.format: got 'bto', expected .* \(did you mean 'bot'\?\)"),
        ({"formt": "bot"}, r"chat\.formt: unknown setting \(did you mean 'format'\?\)"),
        ({"think": True}, r"chat\.think: got True, expected none, open or fake"),
        ("bot", r"chat: got 'bot', expected a mapping or ChatSettings"),
        ({"format": "template"}, r"chat\.format: got 'template', but there is no chat_template\.jinja"),
        ({"template": 5}, r"chat\.template: got 5, expected a Jinja template"),
    ],
)
def test_settings_are_checked_before_the_model_loads(
    llm: LLM, chat: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        llm.chat(HELLO, chat=chat)

    def load(*_: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(LLM, "_load", load)
    with pytest.raises(ConfigurationError, match=named):
        LLM("demo", device="cpu", chat=chat)


def test_the_model_s_settings_are_the_default_of_its_calls() -> None:
    with LLM("demo", device="cpu", dtype="float32", max_batch_size=4, chat={"format": "bot", "think": "fake"}) as llm:
        assert llm.chat_format.name == "bot"
        params = SamplingParams(max_tokens=1)
        assert llm.chat(HELLO, params)[0].prompt == "User✿2+2?✿\nBot✿<think></think"
        assert llm.chat(HELLO, params, chat={"format": "rwkv"})[0].prompt == "User: 2+2?\n\nAssistant:"
        assert llm.generate({"messages": HELLO}, params)[0].prompt == "User✿2+2?✿\nBot✿<think></think"


def test_parameters_that_prompts_share_are_shared_with_the_stops(llm: LLM) -> None:
    """Each new object of parameters costs a check and a set of stop strings."""
    from rwkv_batch.text.rendered import Joined, Rendered

    with_stops, params = Joined().with_stops, SamplingParams(stop_token_ids=[5])
    first, second = with_stops(params, Rendered("a", ("x",), (7,))), with_stops(params, Rendered("b", ("x",), (7,)))
    assert first is second
    assert (first.stop, first.stop_token_ids) == (["x"], [5, 7])
    assert with_stops(params, Rendered("a", ("y",))).stop == ["y"]
    assert with_stops(params, Rendered("a", ())) is params
