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
        made.append(RwkvBatchAPI("demo", **{"max_batch_size": 4, "dtype": "float32", **arguments}))
        return made[-1]

    yield get
    for one in made:
        one.close()


def complete(api: RwkvBatchAPI, text: str, **config: Any) -> Any:
    messages = [ChatMessageSystem(content="s"), ChatMessageUser(content=text)]
    return api.generate(messages, [], "none", GenerateConfig(**{"max_tokens": 8, **config}))


def test_the_real_evaluation(tmp_path: Path, capfd):
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
    assert capfd.readouterr().err.count("; the harness now reads its tasks") == 1  # it is not loaded a second time


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


async def count_eight(one: RwkvBatchAPI) -> list[asyncio.Task[Any]]:
    """Eight requests of 1,500 tokens, all of them running."""
    settings: dict[str, Any] = {"max_tokens": 1500, "logit_bias": {0: -100}}
    tasks = [asyncio.create_task(complete(one, f"count {i}", **settings)) for i in range(8)]
    while one.llm.stats().running < 8 or one.llm.stats().completion_tokens < 80:
        await asyncio.sleep(0.001)
    return tasks


def test_cancelled_requests_free_their_slots(api):
    """All slots run requests of 1,500 tokens, which are cancelled. A short request is then served at once."""
    one = api(max_batch_size=8)
    stats = one.llm.stats

    async def cancel_and_ask() -> None:
        tasks = await count_eight(one)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        steps, rows = stats().steps, stats().row_steps
        await complete(one, "short", max_tokens=4)
        # At most one step was running. The prompt is one step, and each token after the first is one.
        assert stats().steps - steps <= 1 + 4
        assert stats().row_steps - rows <= 8 + 4

    asyncio.run(cancel_and_ask())
    assert not one._service._served and not one._service._waiting
    one.close()
    assert one.llm.serving._engine is None


def test_requests_that_are_cancelled_before_they_are_served_cost_nothing(api):
    one = api(max_batch_size=8)

    async def cancel_waiting() -> int:
        running = await count_eight(one)
        waiting = [asyncio.create_task(complete(one, f"wait {i}", max_tokens=1500)) for i in range(600)]
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        rows = one.llm.stats().row_steps
        await complete(one, "short", max_tokens=4)
        return one.llm.stats().row_steps - rows

    assert asyncio.run(cancel_waiting()) <= 8 + 4


def test_samples_that_inspect_ends_at_its_time_limit_free_their_slots(tmp_path):
    samples = [Sample(input=f"count {i}", target="") for i in range(3)]
    model = get_model("rwkv_batch/demo", dtype="float32", max_batch_size=2, memoize=False)
    settings: dict[str, Any] = {"max_tokens": 10**9, "logit_bias": {0: -100}, "extra_body": {"stop": []}}
    task = Task(dataset=samples, solver=generate(), scorer=match())
    (log,) = eval(task, model=model, log_dir=str(tmp_path), display="none", time_limit=2, max_connections=4, **settings)
    assert [sample.limit.type for sample in log.samples] == ["time"] * 3
    output = asyncio.run(complete(model.api, "short", max_tokens=4))
    assert output.stop_reason == "max_tokens"
    assert not model.api._service._served
    model.api.close()


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
