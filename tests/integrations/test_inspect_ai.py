"""The Inspect provider: Inspect's real evaluation through the entry point, and single requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

from rwkv_batch import LLM, SamplingParams
from rwkv_batch.integrations.inspect_ai import RwkvBatchAPI


@pytest.fixture
def api():
    """`api(**arguments)`: a provider with the bundled model, closed after the test."""
    made: list[RwkvBatchAPI] = []

    def get(**arguments: Any) -> RwkvBatchAPI:
        made.append(RwkvBatchAPI("demo", max_batch_size=4, dtype="float32", **arguments))
        return made[-1]

    yield get
    for one in made:
        one.close()


def complete(api: RwkvBatchAPI, text: str, **config: Any) -> Any:
    messages = [ChatMessageSystem(content="s"), ChatMessageUser(content=text)]
    return api.generate(messages, [], "none", GenerateConfig(**{"max_tokens": 8, **config}))


def test_the_real_evaluation(tmp_path: Path):
    questions = [f"def f{i}" for i in range(6)]
    llm = LLM("demo", dtype="float32")
    prompts = [[0, *(byte + 1 for byte in f"User: {text}\n\nAssistant:".encode())] for text in questions]
    params = SamplingParams(max_tokens=6, temperature=0.0, stop=["\n\nUser:"])
    texts = [output.outputs[0].text.strip() for output in llm.generate(prompts, params)]
    targets = [text if i % 3 else "nothing of the kind" for i, text in enumerate(texts)]
    samples = [Sample(input=text, target=target) for text, target in zip(questions, targets, strict=True)]
    task = Task(dataset=samples, solver=generate(), scorer=match(location="exact"))
    model = get_model("rwkv_batch/demo", dtype="float32", config=GenerateConfig(max_tokens=6, temperature=0.0))
    (log,) = eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    assert [sample.output.completion for sample in log.samples] == texts
    expected = sum(text == target for text, target in zip(texts, targets, strict=True)) / 6
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(expected)
    assert log.samples[0].output.usage.input_tokens == len(prompts[0])


def test_requests_in_flight_share_the_batch(api):
    one = api()

    async def together() -> list[Any]:
        return await asyncio.gather(*[complete(one, f"question {i}", temperature=1.0) for i in range(10)])

    outputs = asyncio.run(together())
    assert len({output.completion for output in outputs}) > 1
    assert one.llm.stats().row_steps / one.llm.stats().steps > 2
    alone = asyncio.run(complete(api(), "question 3", temperature=1.0))
    assert alone.completion == outputs[3].completion


def test_settings_reach_the_sampler(api):
    one = api()
    output = asyncio.run(complete(one, "a", num_choices=3, temperature=1.0, seed=5, logprobs=True, top_logprobs=2))
    again = asyncio.run(complete(api(), "a", num_choices=3, temperature=1.0, seed=5, logprobs=True, top_logprobs=2))
    assert [choice.message.text for choice in output.choices] == [choice.message.text for choice in again.choices]
    assert len(output.choices) == 3
    first = output.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) in (2, 3)
    assert first.logprob <= max(top.logprob for top in first.top_logprobs)
    repeated = asyncio.run(complete(one, "a", num_choices=3, temperature=1.0, seed=5, logprobs=True, top_logprobs=2))
    assert [c.message.text for c in repeated.choices] != [c.message.text for c in output.choices]
    assert one.max_connections() == 8


def test_a_bad_request_is_an_error_and_the_next_one_is_served(api):
    one = api()
    with pytest.raises(ValueError, match="lone surrogate"):
        asyncio.run(complete(one, "\ud800"))
    with pytest.raises(ValueError, match="no tool calls"):
        asyncio.run(one.generate([ChatMessageUser(content="a")], [object()], "auto", GenerateConfig()))
    with pytest.raises(ValueError, match="temperature"):
        asyncio.run(complete(one, "a", temperature=-1.0))
    with pytest.raises(ValueError, match="logit_bias holds id 999"):
        asyncio.run(complete(one, "a", logit_bias={999: 1.0}))
    assert asyncio.run(complete(one, "a")).stop_reason in ("stop", "max_tokens")


def test_cancelled_requests_free_their_slots(api):
    """Eight requests of 1,500 tokens are cancelled. A request of 4 tokens after them then needs few steps."""
    one = api()
    stats = one.llm.stats

    async def cancel_and_ask() -> Any:
        settings = {"max_tokens": 1500, "logit_bias": {0: -100}}
        long = [asyncio.create_task(complete(one, f"count {i}", **settings)) for i in range(8)]
        while stats().steps < 5:
            await asyncio.sleep(0.001)
        for task in long:
            task.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        steps = stats().steps
        await complete(one, "short", max_tokens=4)
        return stats().steps - steps

    assert asyncio.run(cancel_and_ask()) < 200


def test_a_failed_engine_raises_its_error_for_running_and_later_requests(api, monkeypatch):
    one = api()
    monkeypatch.setattr("rwkv_batch.prefetch.CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(one.llm._engine, "step", lambda: (_ for _ in ()).throw(RuntimeError("broken hardware")))
    with pytest.raises(RuntimeError, match="broken hardware"):
        asyncio.run(complete(one, "a"))
    with pytest.raises(RuntimeError, match="the engine has ended"):
        asyncio.run(complete(one, "b"))


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="expected a tokenizer"):
        RwkvBatchAPI("demo", tokenizer=None)
