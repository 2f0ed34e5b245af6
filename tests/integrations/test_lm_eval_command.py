"""The harness's real command line over local tasks. Its metrics equal those computed from the `rwkv` package."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from integrations.local_tasks import ROWS, Reference, arguments_of, command, ids, kill_evaluation
from rwkv_batch.integrations import harness_requests
from rwkv_batch.llm import LLM


def check_scores(run: dict[str, Any], reference: Reference) -> None:
    """Compare words and choices with the reference: every request, then every metric."""
    found: dict[str, list[Any]] = {"acc": [], "acc_norm": [], "logprob": [], "greedy": []}
    for line in run["lines"]["local_words"]:
        ((context, continuation),) = arguments_of(line)
        total, is_greedy = reference(context, continuation)
        ((logged_total, logged_greedy),) = line["filtered_resps"]
        assert float(logged_total) == pytest.approx(total, abs=1e-3)
        assert str(logged_greedy) == str(is_greedy)
        found["logprob"].append(total)
        found["greedy"].append(is_greedy)
    for line in run["lines"]["local_choices"]:
        totals = [reference(context, choice)[0] for context, choice in arguments_of(line)]
        assert [float(total) for total, _ in line["filtered_resps"]] == pytest.approx(totals, abs=1e-3)
        lengths = [len(choice) for choice in line["doc"]["choices"]]
        found["acc"].append(best(totals) == line["doc"]["answer"])
        by_length = [total / length for total, length in zip(totals, lengths, strict=True)]
        found["acc_norm"].append(best(by_length) == line["doc"]["answer"])
    words, choices = run["results"]["local_words"], run["results"]["local_choices"]
    assert words["acc,none"] == pytest.approx(mean(found["greedy"]))
    assert words["perplexity,none"] == pytest.approx(math.exp(-mean(found["logprob"])), rel=1e-3)
    assert choices["acc,none"] == pytest.approx(mean(found["acc"]))
    assert choices["acc_norm,none"] == pytest.approx(mean(found["acc_norm"]))


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def test_metrics_of_four_kinds_of_tasks_equal_the_reference(evaluate, reference, greedy, tasks):
    run = evaluate()
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").open()]
    assert [arguments_of(line)[0] for line in run["lines"]["local_words"]] == [
        [row["text"], row["word"]] for row in rows
    ]
    check_scores(run, reference)
    completions = [line["filtered_resps"] for line in run["lines"]["local_completions"]]
    assert completions == [[greedy(row["text"])] for row in rows]
    assert run["results"]["local_completions"]["exact_match,none"] == 0.5
    totals = [reference("", row["page"])[0] for row in rows]
    pages = run["results"]["local_documents"]
    num_bytes = sum(len(row["page"].encode()) for row in rows)
    assert pages["bits_per_byte,none"] == pytest.approx(-sum(totals) / num_bytes / math.log(2), rel=1e-4)
    assert pages["byte_perplexity,none"] == pytest.approx(math.exp(-sum(totals) / num_bytes), rel=1e-4)
    config = run["config"]
    assert config["model"] == "rwkv_batch"
    assert (config["add_bos_token"], config["eot_token_id"], config["rolling"]) == (True, 0, "window")
    assert config["model_sha"] and config["model_dtype"] == "float32"


def test_few_shot_examples_chat_format_and_limit_reach_the_prompts(evaluate, reference):
    names = ("local_words", "local_choices")
    run = evaluate("--num_fewshot", "2", "--limit", "4", names=names)
    assert all(len(lines) == 4 for lines in run["lines"].values())
    ((context, _), *_) = arguments_of(run["lines"]["local_choices"][0])
    assert context.count("Question: ") == 3
    check_scores(run, reference)
    run = evaluate("--num_fewshot", "1", "--limit", "4", "--apply_chat_template", names=names)
    ((context, choice), *_) = arguments_of(run["lines"]["local_choices"][0])
    assert context.startswith("User: Question: ")
    assert context.endswith("\n\nAssistant:")
    assert context.count("\n\nAssistant:") == 2
    assert choice.startswith(" ")  # what was scored, not the task's choice
    check_scores(run, reference)
    assert "Assistant:" in run["chat_template"]


def test_conventions_of_other_programs_are_model_arguments(evaluate, demo_oracle):
    """A newline in place of token 0, as ChatRWKV's run_lm_eval.py; chunks as uncheatable-eval scores them."""
    names = ("local_words", "local_documents")
    arguments = r"pretrained=demo,dtype=float32,prefix=\n,rolling=chunks,rolling_length=16"
    run = evaluate("--model_args", arguments, names=names)
    totals = []
    for line in run["lines"]["local_words"]:
        ((context, continuation),) = arguments_of(line)
        total, _, is_greedy = demo_oracle.loglikelihood([11, *ids(context)], ids(continuation))
        assert float(line["filtered_resps"][0][0]) == pytest.approx(total, abs=1e-3)
        assert str(line["filtered_resps"][0][1]) == str(is_greedy)
        totals.append(total)
    assert run["results"]["local_words"]["perplexity,none"] == pytest.approx(math.exp(-mean(totals)), rel=1e-3)
    bits, num_bytes = 0.0, 0
    for line in run["lines"]["local_documents"]:
        page = line["doc"]["page"]
        chunks = [ids(page)[start : start + 16] for start in range(0, len(ids(page)), 16)]
        total = sum(demo_oracle.loglikelihood(chunk[:1], chunk[1:])[0] for chunk in chunks if chunk[1:])
        assert float(line["filtered_resps"][0]) == pytest.approx(total, abs=1e-3)
        bits, num_bytes = bits - total / math.log(2), num_bytes + len(page.encode())
    assert run["results"]["local_documents"]["bits_per_byte,none"] == pytest.approx(bits / num_bytes, rel=1e-4)
    config = run["config"]
    assert (config["prefix"], config["add_bos_token"]) == ("\n", False)
    assert (config["rolling"], config["rolling_length"]) == ("chunks", 16)


def test_answers_come_from_the_cache(evaluate, tmp_path, monkeypatch):
    cache = ("--use_cache", str(tmp_path / "cache"))
    first = evaluate(*cache)
    monkeypatch.setattr(LLM, "serve", None)
    monkeypatch.setattr(LLM, "serve_scores", None)
    again = evaluate(*cache)
    assert again["results"] == first["results"]
    assert again["lines"].keys() == first["lines"].keys()
    with pytest.raises(TypeError):
        evaluate(*cache, "--model_args", "pretrained=demo,dtype=bfloat16")


HELD_EVALUATION = """
import functools, itertools, sys, time
import lm_eval.api.model, lm_eval.tasks
from rwkv_batch.cli import main

hook, count = lm_eval.api.model.CacheHook, itertools.count(1)
add_partial = hook.add_partial

def add_and_hold(*arguments):
    add_partial(*arguments)
    while next(count) >= 5:
        time.sleep(1)

hook.add_partial = add_and_hold
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
main(sys.argv[1:])
"""
"""A program that evaluates, and sleeps forever once it has five answers."""


def test_a_killed_evaluation_goes_on(evaluate, tasks, tmp_path, monkeypatch):
    names = ("local_choices", "local_documents")
    whole = evaluate(names=names)
    cache = ["--use_cache", str(tmp_path / "cache")]
    arguments = ["lm-eval", *command(tasks, names), "--output_path", str(tmp_path)]
    kept = kill_evaluation(HELD_EVALUATION, arguments, tmp_path, 1)
    served: list[int] = []
    score_pairs = harness_requests.score_pairs

    def counted(llm: LLM, requests: list[Any]) -> Any:
        served.append(len(requests))
        return score_pairs(llm, requests)

    monkeypatch.setattr("rwkv_batch.integrations.lm_eval.score_pairs", counted)
    again = evaluate(*cache, names=names)
    num_choices = sum(len(line["doc"]["choices"]) for line in whole["lines"]["local_choices"])
    assert 0 < kept <= 5
    assert sum(served) == num_choices + ROWS - kept
    for name in names:
        for metric, value in whole["results"][name].items():
            if isinstance(value, float):
                assert again["results"][name][metric] == pytest.approx(value, rel=1e-4), metric


def test_other_models_of_the_harness_still_work(evaluate, tmp_path):
    run = evaluate("--model", "dummy", "--model_args", "", names=("local_choices",))
    assert run["config"]["model"] == "dummy"


def test_the_entry_point_names_the_model():
    from importlib.metadata import entry_points

    from rwkv_batch.integrations.lm_eval import RwkvBatchLM

    (point,) = entry_points(group="lm_eval.models", name="rwkv_batch")
    assert point.load() is RwkvBatchLM
