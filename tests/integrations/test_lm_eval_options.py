"""Options of the harness's command line, with the real harness over local tasks: chat, seeds, devices, caches."""

from __future__ import annotations

from typing import Any

import lm_eval
import lm_eval.tasks
import pytest

from integrations.local_tasks import ROWS, arguments_of, command, kill_evaluation
from rwkv_batch.cli import main
from rwkv_batch.llm import LLM

SUMS = ("local_sums",)
SAMPLES = ("local_samples",)


def test_a_turn_ends_where_the_model_s_turn_ends(evaluate):
    """The last number of a completion is the answer: without the format's stops it is that of another question."""
    plain = evaluate("--limit", "1", names=SUMS)
    assert plain["lines"]["local_sums"][0]["filtered_resps"] == ["18"]
    assert plain["results"]["local_sums"]["exact_match,flexible-extract"] == 0.0
    chat = evaluate("--limit", "1", "--apply_chat_template", names=SUMS)
    (line,) = chat["lines"]["local_sums"]
    assert (line["resps"], line["filtered_resps"]) == ([[" 4"]], ["4"])
    assert arguments_of(line)[0][0] == "User: 2+2?\n\nAssistant:"
    assert chat["results"]["local_sums"]["exact_match,flexible-extract"] == 1.0
    assert chat["chat_template"].startswith("System: {system}\n\nUser: {user}\n\nAssistant: {assistant}")
    assert (chat["config"]["chat_format"], chat["config"]["chat_stop"]) == ("rwkv", ["\n\nUser:"])


def test_the_option_and_the_model_arguments_choose_the_chat_format(evaluate):
    names = ("local_choices",)
    by_option = evaluate("--limit", "1", "--apply_chat_template", "bot", names=names)
    arguments = "pretrained=demo,dtype=float32,chat_format=bot,think=fake"
    by_argument = evaluate("--limit", "1", "--apply_chat_template", "--model_args", arguments, names=names)
    for run, end, start in ((by_option, "Bot✿", ""), (by_argument, "Bot✿<think></think", ">")):
        (line,) = run["lines"]["local_choices"]
        choices = line["doc"]["choices"]
        assert [choice for _, choice in arguments_of(line)] == [start + choice for choice in choices]
        assert all(context.endswith(f"✿\n{end}") for context, _ in arguments_of(line))
        assert run["config"]["chat_format"] == "bot"
        assert "User✿{user}✿" in run["chat_template"]


def test_requests_from_the_harness_s_cache_are_in_the_chat_format_too(evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    options = ("--cache_requests", "true", "--apply_chat_template", "--limit", "2")
    first = evaluate(*options, names=(*SUMS, "local_choices"))
    with monkeypatch.context() as patch:
        patch.setattr("rwkv_batch.integrations.lm_eval.RwkvBatchLM.apply_chat_template", None)
        again = evaluate(*options, names=(*SUMS, "local_choices"))
    assert again["results"] == first["results"]
    assert again["lines"]["local_sums"][0]["filtered_resps"] == ["4"]
    assert again["lines"]["local_choices"] == first["lines"]["local_choices"]
    other = evaluate(*options, "--model_args", "pretrained=demo,dtype=float32,think=fake", names=SUMS)
    assert arguments_of(other["lines"]["local_sums"][0])[0][0].endswith("<think></think")


def completions(run: dict[str, Any]) -> list[list[str]]:
    """The three samples of each row."""
    found = [line["resps"][0] for line in run["lines"]["local_samples"]]
    assert len(found) == ROWS
    assert all(len(samples) == 3 for samples in found)
    return found


def test_the_seed_of_the_harness_is_the_seed_of_samples(evaluate):
    one, again, two = (evaluate("--seed", seed, names=SAMPLES) for seed in ("1", "1", "2"))
    assert completions(one) == completions(again) != completions(two)
    assert len({text for samples in completions(one) for text in samples}) > ROWS
    assert [run["config"]["sampling_seed"] for run in (one, two)] == [1, 2]
    chosen = "pretrained=demo,dtype=float32,seed=2"
    assert completions(evaluate("--seed", "1", "--model_args", chosen, names=SAMPLES)) == completions(two)


HELD_EVALUATION = """
import functools, itertools, sys, time
import lm_eval.tasks
from rwkv_batch.integrations.lm_eval_cache import AnswerTables
from rwkv_batch.cli import main

keep_sample, count = AnswerTables.keep_sample, itertools.count(1)

def keep_and_hold(*arguments):
    keep_sample(*arguments)
    while next(count) >= 7:
        time.sleep(1)

AnswerTables.keep_sample = keep_and_hold
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
main(sys.argv[1:])
"""
"""A program that evaluates, and sleeps forever once it has kept seven samples."""


def test_a_killed_evaluation_of_samples_goes_on(evaluate, tasks, tmp_path, monkeypatch):
    whole = evaluate(names=SAMPLES)
    cache = ["--use_cache", str(tmp_path / "cache")]
    arguments = ["lm-eval", *command(tasks, SAMPLES), "--output_path", str(tmp_path)]
    kill_evaluation(HELD_EVALUATION, arguments, tmp_path, 7)
    served: list[int] = []
    serve = LLM.serve

    def counted(llm: LLM, rows: Any) -> Any:
        rows = list(rows)
        served.append(len(rows))
        return serve(llm, rows)

    monkeypatch.setattr(LLM, "serve", counted)
    again = evaluate(*cache, names=SAMPLES)
    assert served == [3 * ROWS - 7]
    assert completions(again) == completions(whole)
    third = evaluate(*cache, names=SAMPLES)
    assert served == [3 * ROWS - 7, 0]
    assert third["results"] == whole["results"]


def test_results_name_the_device_that_was_used(evaluate):
    names = ("local_words",)
    run = evaluate("--limit", "1", names=names)
    assert run["config"]["device"] == run["config"]["model_device"] == str(LLM("demo").summary.placement.device)
    arguments = "pretrained=demo,dtype=float32,device=cpu"
    run = evaluate("--limit", "1", "--device", "cuda:7", "--model_args", arguments, names=names)
    assert run["config"]["device"] == "cpu"
    assert "simple_evaluate" not in vars(lm_eval)


def test_wrong_arguments_are_refused_before_the_harness_reads_its_tasks(tasks, monkeypatch, capsys):
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: pytest.fail("the tasks are read"))
    for arguments, message in (
        ("pretraind=demo", "--model_args: unknown argument 'pretraind' (did you mean 'pretrained'?)"),
        ("pretrained=demo,rolling=half", "rolling: got 'half'"),
        ("pretrained=demo,chat_format=bott", "chat_format: got 'bott'"),
        ("pretrained=demo,dtype=float12", "dtype: got 'float12'"),
        ("pretrained=missing.pth", "missing.pth"),
        ("pretrained=demo,max_batch_tokens=many", "max_batch_tokens: got 'many', expected an integer"),
        ("pretrained=demo,enable_lora=True", "enable_lora: got True"),
        ("dtype=float32", "pretrained: got None and model=None, expected one of them"),
    ):
        assert main(["lm-eval", *command(tasks, ("local_words",), arguments), "--output_path", "out"]) == 2
        assert f"rwkv-batch: {message}" in capsys.readouterr().err


def test_a_line_says_what_comes_before_the_tasks_are_read(tasks, tmp_path, monkeypatch, capsys):
    seen: list[str] = []

    def read(**_: Any) -> None:
        seen.append(capsys.readouterr().err)
        raise KeyError("stop here")

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", read)
    config = tmp_path / "evaluation.yaml"
    config.write_text("model: rwkv_batch\nmodel_args: {pretrained: demo, dtype: float32}\ntasks: [local_words]\n")
    for options in (command(tasks, ("local_words",)), ["run", "--config", str(config)]):
        with pytest.raises(KeyError, match="stop here"):
            main(["lm-eval", *options, "--output_path", str(tmp_path)])
        assert "rwkv_batch: demo, rwkv7 1.6M, " in seen[-1]
        assert "; the harness now reads its tasks" in seen[-1]


def test_arguments_of_other_backends_are_accepted(evaluate):
    arguments = "pretrained=demo,dtype=float,gpu_memory_utilization=0.5,trust_remote_code=True"
    run = evaluate("--limit", "1", "--trust_remote_code", "--model_args", arguments, names=("local_words",))
    assert run["config"]["model_dtype"] == "float32"


def test_the_help_names_this_command(capsys):
    for options in ([], ["run"], ["ls"], ["validate"]):
        with pytest.raises(SystemExit) as stop:
            main(["lm-eval", *options, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith("usage: rwkv-batch lm-eval ")
        assert " lm-eval run " not in text.replace("rwkv-batch lm-eval", "")


def test_python_finds_the_model_by_its_name(tasks, evaluate, greedy):
    manager = lm_eval.tasks.TaskManager(include_path=str(tasks))
    results = lm_eval.simple_evaluate(
        model="rwkv_batch",
        model_args="pretrained=demo,dtype=float32",
        tasks=["local_completions"],
        task_manager=manager,
    )
    assert results is not None
    assert results["results"]["local_completions"]["exact_match,none"] == 0.5
    assert results["config"]["model_sha"]
