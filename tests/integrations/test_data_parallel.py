"""The harnesses' models with two engines: the answers of one."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from fakes.fork_server import forked_processes
from inspect_ai.model import ChatMessageUser, GenerateConfig
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.tasks.requests import Doc

import rwkv_batch.integrations.lighteval as lighteval_model
from integrations.small_model import instances
from rwkv_batch.integrations.inspect_ai import RwkvBatchAPI
from rwkv_batch.integrations.lm_eval import RwkvBatchLM

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "max_batch_size": 4,
    "batch_invariant": True,
}
WAYS = (1, 2)


@pytest.fixture(scope="module", autouse=True)
def forked():
    with forked_processes():
        yield


def both_serve(llm: Any) -> bool:
    """Whether each of the two engines has run."""
    answers = [process.ask("stats").result() for process in llm._engine.by_index.values()]
    return len(answers) == 2 and all(answer.stats.steps for answer in answers)


def test_lm_eval():
    pairs = [(f"def f{i}(", f"x{i})") for i in range(12)]
    completions = [(f"def f{i}(", {"until": ["\n"], "max_gen_toks": 8, "do_sample": bool(i % 2)}) for i in range(12)]
    answers = []
    for engines in WAYS:
        lm = RwkvBatchLM("demo", data_parallel=engines, **SETTINGS)
        answers.append(
            (
                lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True),
                lm.loglikelihood_rolling(instances("loglikelihood_rolling", *[(text * 9,) for text, _ in pairs])),
                lm.generate_until(instances("generate_until", *completions), disable_tqdm=True),
                lm.get_model_info()["model_sha"],
            )
        )
        assert engines == 1 or both_serve(lm.llm)
        lm.llm.close()
    assert answers[0] == answers[1]


def test_lighteval(tmp_path):
    documents = [
        Doc(query=f"def f{i}(", choices=["x", "y)"], gold_index=0, id=f"{i}", task_name="t", generation_size=6)
        for i in range(12)
    ]
    answers = []
    for engines in WAYS:
        options = {**SETTINGS, "data_parallel": engines}
        kind = type("Model", (lighteval_model.RwkvBatchModel,), {"options": options})
        config = CustomModelConfig(
            model_name="demo", model_definition_file_path=lighteval_model.__file__, cache_dir=str(tmp_path)
        )
        model = kind(config)
        model._cache = None
        scores, texts = model.loglikelihood(documents), model.greedy_until(documents)
        answers.append(([one.logprobs for one in scores], [one.text for one in texts]))
        assert engines == 1 or both_serve(model.llm)
        model.llm.close()
    assert answers[0] == answers[1]


def test_inspect():
    answers = []

    async def together(api: RwkvBatchAPI) -> list[str]:
        config = GenerateConfig(max_tokens=8, temperature=1.0, num_choices=2)
        calls = [api.generate([ChatMessageUser(content=f"question {i}")], [], "none", config) for i in range(12)]
        return [choice.message.text for output in await asyncio.gather(*calls) for choice in output.choices]

    async def cancelled(api: RwkvBatchAPI) -> None:
        config = GenerateConfig(max_tokens=60_000, extra_body={"ignore_eos": True})
        calls = [
            asyncio.ensure_future(api.generate([ChatMessageUser(content=f"{i}")], [], "none", config)) for i in range(6)
        ]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*calls, return_exceptions=True)
        )

    for engines in WAYS:
        api = RwkvBatchAPI("demo", data_parallel=engines, **SETTINGS)
        assert api.max_connections() == 2 * 4 * engines
        answers.append(asyncio.run(together(api)))
        assert engines == 1 or both_serve(api.llm)
        asyncio.run(cancelled(api))
        api.close()  # waits for all that is served: 60,000 tokens would take minutes
    assert answers[0] == answers[1]
    gc.collect()


def test_arguments_are_checked():
    with pytest.raises(Exception, match=r"^data_parallel: got 'two', expected an integer"):
        RwkvBatchLM("demo", data_parallel="two")
