"""Tasks of the real harness with a loaded model: metrics and samples agree with what the model itself scores."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.evaluator
import numpy as np
import pytest

from rwkv_batch import LLM
from rwkv_batch.suite.config import HarnessSection
from rwkv_batch.suite.harness import Harness
from rwkv_batch.suite.messages import Done
from rwkv_batch.suite.tasks import HarnessTask
from suite.harness_tasks import write_random, write_tasks


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_random(tmp_path_factory.mktemp("model") / "rwkv-2.pth", 2)
    with LLM(path, tokenizer="bytes", dtype="float32", device="cpu", max_batch_size=8) as llm:
        yield llm


@pytest.fixture
def evaluate(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evaluate(name, **settings of the entry)`: the answer to a task."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for name in ("add_env_info", "get_git_commit_hash"):  # which the harness of a suite replaces
        monkeypatch.setattr(lm_eval.evaluator, name, getattr(lm_eval.evaluator, name))
    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.WARNING)
    folder = write_tasks(tmp_path)

    def evaluate(name: str, **settings: Any) -> Done:
        (task,) = tasks(folder, name, **settings)
        done = Harness([task]).evaluate(llm, task, str(tmp_path / "cache" / name))
        assert [*(tmp_path / "cache").iterdir()] == []
        json.dumps(done.settings)
        return done

    return evaluate


def tasks(folder: Path, *names: str, **settings: Any) -> list[HarnessTask]:
    section = HarnessSection(lm_eval=[*names], include_path=str(folder), include_defaults=False, **settings)
    return [HarnessTask(name, {}, name, section, "tasks[0].lm_eval") for name in names]


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "tasks" / "rows.jsonl").open()]


def test_words_equal_the_scores_of_the_model(evaluate: Any, llm: LLM, tmp_path: Path) -> None:
    done = evaluate("local_words")
    pairs = [(row["text"], row["word"]) for row in rows(tmp_path)]
    scores = [llm.score([pair], add_bos_token=True)[0].logprob for pair in pairs]
    assert done.samples.values["perplexity"].tolist() == pytest.approx([-score for score in scores], abs=1e-3)
    metrics = {one.name: one for one in done.metrics}
    assert metrics["perplexity"].value == pytest.approx(math.exp(-np.mean(scores)), rel=1e-3)
    assert not metrics["perplexity"].higher_is_better
    assert [one.split()[0] for one in done.samples.ids] == [str(number) for number in range(6)]
    assert done.settings["model"]["add_bos_token"] is True
    assert done.settings["num_fewshot"] == {"local_words": 0}


def test_settings_of_an_entry_reach_the_harness(evaluate: Any, llm: LLM, tmp_path: Path) -> None:
    done = evaluate("local_words", limit=2, num_fewshot=0, model_args={"add_bos_token": False, "prefix": "\n"})
    pairs = [(row["text"], row["word"]) for row in rows(tmp_path)[:2]]
    scores = [one.logprob for one in llm.score(pairs, prefix="\n")]
    assert done.samples.values["perplexity"].tolist() == pytest.approx([-score for score in scores], abs=1e-3)
    chat = evaluate("local_choices", chat_format="bot", think="fake", system_instruction="Be brief.", num_fewshot=1)
    assert (chat.settings["model"]["chat_format"], chat.settings["model"]["think"]) == ("bot", "fake")
    assert chat.settings["num_fewshot"] == {"local_choices": 1}


def test_groups_samples_and_completions(evaluate: Any, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    group = evaluate("local_group")
    assert [(one.name, one.samples) for one in group.metrics] == [("acc", 12)]
    assert group.metrics[0].value == pytest.approx(np.mean(group.samples.values["acc"]))
    assert {one.split()[0] for one in group.samples.ids} == {"local_words", "local_choices"}
    assert [one.name for one in evaluate("local_samples").metrics] == ["exact_match first"]
    served: list[Any] = []
    serve = llm.serve

    def watched(rows: Any) -> Any:
        served.extend(rows)
        return serve(served)

    monkeypatch.setattr(llm, "serve", watched)
    assert len(evaluate("local_completions", gen_kwargs={"max_gen_toks": 2}).samples.ids) == 6
    assert [row.params.max_tokens for row in served] == [2] * 6


def test_what_the_harness_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("add_env_info", "get_git_commit_hash"):
        monkeypatch.setattr(lm_eval.evaluator, name, getattr(lm_eval.evaluator, name))
    folder = write_tasks(tmp_path)
    wrong = [
        *tasks(folder, "local_word", "local_words"),
        *tasks(folder, "local_words", model_args={"add_bos_tokens": 1}),
        *tasks(folder, "local_words", model_args={"pretrained": "x"}),
        *tasks(folder, "local_words", model_args={"rolling": "x"}),
    ]
    problems = [*Harness(wrong).problems()]
    assert [problem.split(", expected")[0] for problem in problems] == [
        "tasks[0].lm_eval: the harness has no task 'local_word' (did you mean 'local_words'?); see rwkv-batch lm-eval "
        "ls tasks",
        "tasks[0].model_args: unknown argument 'add_bos_tokens' (did you mean 'add_bos_token'?)",
        "tasks[0].model_args: unknown argument 'pretrained'",
        "tasks[0].model_args: rolling: got 'x'",
    ]
    missing = tasks(tmp_path / "none", "local_words")
    assert [*Harness(missing).problems()] == [
        f"include_path: {tmp_path}/none is not a folder, expected one with tasks of the harness"
    ]
