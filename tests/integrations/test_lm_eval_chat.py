"""Prompts in chat formats: what the harness's model renders, scores and stops at."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from integrations.small_model import VOCAB, encode, instances
from rwkv_batch import LLM
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations import lm_eval_completions
from rwkv_batch.integrations.harness_chat import ChatPrompt
from rwkv_batch.integrations.lm_eval import RwkvBatchLM
from rwkv_batch.model_summary import DEMO_MODEL

HISTORY = [{"role": "system", "content": "s"}, {"role": "user", "content": "q\n\nr"}]
ANSWERED = [*HISTORY, {"role": "assistant", "content": "It is"}]


def test_conversations_are_rendered_in_the_chat_format(model):
    lm = model()
    assert lm.apply_chat_template(HISTORY) == "System: s\n\nUser: q\nr\n\nAssistant:"
    assert lm.apply_chat_template(HISTORY, add_generation_prompt=False) == "System: s\n\nUser: q\nr"
    for add_generation_prompt in (True, False):
        prompt = lm.apply_chat_template(ANSWERED, add_generation_prompt=add_generation_prompt)
        assert prompt == "System: s\n\nUser: q\nr\n\nAssistant: It is"
        assert model(chat_format="bot").apply_chat_template(ANSWERED, add_generation_prompt).endswith("\nBot✿It is")
    assert model(chat_format="bot").apply_chat_template(HISTORY) == "System✿s✿\nUser✿q\nr✿\nBot✿"
    assert model(think="open").apply_chat_template(HISTORY).endswith("\n\nAssistant: <think")
    assert model(enable_thinking=False).apply_chat_template(HISTORY).endswith("\n\nAssistant: <think></think")


def test_what_enables_thinking_has_the_names_of_other_backends(model):
    assert model(enable_thinking=True).get_model_info()["think"] == "open"
    assert model(chat_template_args={"enable_thinking": False}).get_model_info()["think"] == "fake"
    assert model(chat_template_args='{"enable_thinking": true}').get_model_info()["think"] == "open"
    assert model(think="fake", enable_thinking=False).get_model_info()["think"] == "fake"
    for arguments, message in (
        ({"think": "open", "enable_thinking": False}, "think: got 'open' beside enable_thinking=False"),
        ({"enable_thinking": "yes"}, "enable_thinking: got 'yes', expected True or False"),
        ({"chat_template_args": "{enable"}, "chat_template_args: got '{enable', expected a mapping"),
        ({"chat_template_args": [1]}, r"chat_template_args: got \[1\], expected a mapping"),
        ({"chat_template_args": {"effort": "low"}}, "got effort for the format rwkv, expected only enable_thinking"),
        ({"think": "fast"}, "^think: got 'fast', expected none, open or fake"),
        ({"chat_format": "bott"}, "^chat_format: got 'bott', .*did you mean 'bot'"),
        ({"chat_format": "bot", "chat_template": "x"}, "^chat_template: got a template, expected none"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            model(**arguments)


def test_the_settings_of_a_loaded_model_count(checkpoint_file, vocabulary, model):
    llm = LLM(checkpoint_file("7.0", vocab=VOCAB), tokenizer=str(vocabulary), chat={"format": "bot", "think": "fake"})
    assert RwkvBatchLM(llm).apply_chat_template(HISTORY).endswith("\nBot✿<think></think")
    assert RwkvBatchLM(llm, think="none").apply_chat_template(HISTORY).endswith("\nBot✿")
    assert RwkvBatchLM(llm, chat_format="rwkv").apply_chat_template(HISTORY).endswith("\n\nAssistant: <think></think")


def test_a_name_after_the_option_chooses_the_format(model):
    lm = model(think="fake")
    assert lm.chat_template(False) is None
    assert lm.chat_template("") is None
    assert lm.chat_template(True) == (
        "System: {system}\n\nUser: {user}\n\nAssistant: {assistant}\n\nUser: {user}\n\nAssistant: <think></think"
    )
    names = {lm.tokenizer_name}
    assert "Bot✿{assistant}✿" in lm.chat_template("bot")
    assert lm.apply_chat_template(HISTORY).endswith("\nBot✿<think></think")
    assert lm.get_model_info()["chat_format"] == "bot"
    names.add(lm.tokenizer_name)
    assert "Bot✿" not in lm.chat_template(True)
    with pytest.raises(ConfigurationError, match=r"^--apply_chat_template: got 'chatml', expected auto, rwkv, bot"):
        lm.chat_template("chatml")
    names |= {model().tokenizer_name, model(think="open").tokenizer_name}
    assert len(names) == 4  # a request that another format has rendered never comes from the harness's cache
    assert model().tokenizer_name == model().tokenizer_name


def test_a_scored_answer_starts_as_the_format_starts_it_and_the_log_shows_it(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    for arguments, start in (({}, " "), ({"chat_format": "bot"}, ""), ({"think": "fake"}, ">")):
        lm = model(**arguments)
        context = lm.apply_chat_template(HISTORY)
        requests = instances("loglikelihood", (context, "yes"), (context, " yes"))
        found = lm.loglikelihood(requests, disable_tqdm=True)
        assert [request.args for request in requests] == [(context, f"{start}yes"), (context, " yes")]
        expected = [reference.loglikelihood([0, *encode(context)], encode(text))[0] for text in (f"{start}yes", " yes")]
        assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=1e-4)
        again = lm.loglikelihood(requests, disable_tqdm=True)
        assert again == found  # nothing is put in front twice
    continued = lm.apply_chat_template(ANSWERED)
    (request,) = instances("loglikelihood", (continued, "yes"))
    lm.loglikelihood([request], disable_tqdm=True)
    assert request.args == (continued, "yes")


def test_answers_of_a_model_that_begins_to_think_are_not_scored(model):
    lm = model(think="open")
    request = instances("loglikelihood", (lm.apply_chat_template(HISTORY), "yes"))
    with pytest.raises(ValueError, match="think: got 'open' for a task that scores answers"):
        lm.loglikelihood(request, disable_tqdm=True)


def completion(lm, prompt: str, forced: str, **arguments: object) -> str:
    """The answer of a model whose text is forced."""
    settings = {"until": [], "max_gen_toks": 120, "regex": re.escape(forced).replace("\\ ", " "), **arguments}
    with pytest.MonkeyPatch.context() as patch:  # a constraint is refused after an open thought
        patch.setattr(lm_eval_completions, "constrained_prompt", lambda prompt, _: prompt)
        (text,) = lm.generate_until(instances("generate_until", (prompt, settings)), disable_tqdm=True)
    return text


def test_a_constraint_of_a_task_allows_no_open_thought(model):
    settings = {"until": [], "max_gen_toks": 9, "regex": "yes"}
    for think, expected in (("none", "yes"), ("fake", "yes")):
        lm = model(think=think)
        request = instances("generate_until", (lm.apply_chat_template(HISTORY), settings))
        assert lm.generate_until(request, disable_tqdm=True) == [expected]
    lm = model(think="open")
    request = instances("generate_until", (lm.apply_chat_template(HISTORY), settings))
    with pytest.raises(ValueError, match="think: got an open thought beside regex"):
        lm.generate_until(request, disable_tqdm=True)


def test_a_turn_ends_where_the_turn_of_the_model_ends(model):
    lm, forced = model(), " 4\n\nUser: 9+9?\n\nAssistant: 18"
    prompt = lm.apply_chat_template([{"role": "user", "content": "2+2?"}])
    assert completion(lm, prompt, forced) == " 4"
    assert completion(lm, prompt, forced, until=["\n\n"]) == " 4"
    assert completion(lm, prompt, forced, until=["4"]) == " "
    assert completion(lm, str(prompt), forced) == forced  # without a chat format, the task's strings alone
    bot = model(chat_format="bot")
    assert completion(bot, bot.apply_chat_template(HISTORY), "4✿\nUser✿9+9?") == "4"
    assert bot.get_model_info()["chat_stop"] == ["✿"]


def test_thinking_is_cut_off_and_strings_of_the_task_end_the_answer_after_it(model, monkeypatch):
    # The regex stands for what a model writes by itself; of a user it would be refused beside an open thought.
    place = "rwkv_batch.integrations.lm_eval_completions.constrained_prompt"
    monkeypatch.setattr(place, lambda prompt, params: prompt)
    lm = model(think="open")
    prompt = lm.apply_chat_template(HISTORY)
    assert completion(lm, prompt, ">a\n\nb</think>\n4\n\nc", until=["\n\n"]) == "4"
    assert completion(lm, prompt, ">a</think>\n4\n\nUser: 5") == "4"
    assert completion(lm, prompt, ">never closed", until=["x"]) == ">never closed"
    assert completion(lm, str(prompt), "a</think>4") == "a</think>4"  # no chat format: nothing is cut off
    other = model(think="open", think_end_token="END")
    assert completion(other, prompt, ">a</think>END4") == "4"
    fake = model(think="fake")
    assert completion(fake, fake.apply_chat_template(HISTORY), ">\n\n4 > 3") == "4 > 3"


def test_prompts_are_known_again_after_the_cache_of_requests(model):
    """The harness writes rendered requests with dill, and reads them in another process."""
    dill = pytest.importorskip("dill")
    prompt = dill.loads(dill.dumps(model().apply_chat_template(HISTORY)))
    assert isinstance(prompt, ChatPrompt)
    assert prompt.answered("4") == " 4"


def test_a_template_beside_the_model_is_used_and_recorded(tmp_path: Path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>{{ mood }}"
    shutil.copy(DEMO_MODEL, tmp_path / "model.safetensors")
    (tmp_path / "chat_template.jinja").write_text(template)
    lm = RwkvBatchLM(tmp_path / "model.safetensors", chat_template_args={"mood": "calm"})
    assert lm.chat_template(True) == template
    assert lm.get_model_info()["chat_format"] == "template"
    assert lm.apply_chat_template(HISTORY) == "<system>s<user>q\n\nr<assistant>calm"
