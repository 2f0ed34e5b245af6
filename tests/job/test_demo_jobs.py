"""The example jobs as a user runs them, with the bundled model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rwkv_batch import LLM
from rwkv_batch.job.config import describe_settings
from rwkv_batch.job.load import load_job
from rwkv_batch.run import main

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.usefixtures("real_engine")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(name: str, output: Path, *arguments: str) -> list[dict]:
    assert main([f"jobs/{name}.yaml", "-o", f"output.path={output}", *arguments]) == 0
    return [row for path in sorted(output.iterdir()) for row in pq.read_table(path).to_pylist()]


def test_demo(tmp_path: Path) -> None:
    rows = run("demo", tmp_path / "out", "-o", "input.limit=6", "-o", "sampling.max_tokens=4")
    assert len(rows) == 6
    assert all(row["status"] == "ok" and 0 < row["completion_tokens"] <= 4 for row in rows)


def test_eval_takes_temperature_from_its_rows(tmp_path: Path) -> None:
    arguments = ("-o", "input.limit=8", "-o", "sampling.max_tokens=6", "-o", "sampling.temperature=0.9")
    first = run("eval", tmp_path / "a", *arguments)
    other = run("eval", tmp_path / "b", *arguments, "-o", "sampling.seed=1")
    assert len(first) == 8
    greedy = [i for i, row in enumerate(first) if row["temperature"] == 0.0]
    assert greedy and [first[i]["completion"] for i in greedy] == [other[i]["completion"] for i in greedy]
    assert [row["completion"] for row in first] != [row["completion"] for row in other]


def test_score(tmp_path: Path) -> None:
    rows = run("score", tmp_path / "out", "-o", "input.limit=5")
    assert set(rows[0]) >= {"id", "choices", "answer", "logprob", "is_greedy", "num_tokens", "best_choice"}
    assert "context" not in rows[0]
    for row in rows:
        assert row["num_tokens"] == [len(choice.encode()) for choice in row["choices"]]
        assert row["best_choice"] == max(range(4), key=lambda i: row["logprob"][i])


def test_score_with_token_0_before_each_context(tmp_path: Path) -> None:
    settings = ("input.limit=3", "model.dtype=float32", "score.add_bos_token=true", "output.logprobs=true")
    rows = run("score", tmp_path / "out", *(argument for one in settings for argument in ("-o", one)))
    contexts = pq.read_table("jobs/data/score_questions.parquet")["context"].to_pylist()
    pairs = [(context, row["choices"]) for context, row in zip(contexts, rows, strict=False)]
    for row, scores in zip(rows, LLM("demo", dtype="float32").score(pairs, add_bos_token=True), strict=True):
        assert row["logprob"] == pytest.approx([score.logprob for score in scores], abs=1e-2)
        assert [len(values) for values in row["token_logprobs"]] == row["num_tokens"]
    scores = json.loads((tmp_path / "out.rwkv_batch" / "report.json").read_text())["scores"]
    right = [row["best_choice"] == row["answer"] for row in rows]
    assert scores["accuracy"]["value"] == pytest.approx(sum(right) / 3)
    assert scores.keys() == {"accuracy", "accuracy_norm", "accuracy_bytes"}


@cache
def scores_of(pairs: tuple[tuple[str, tuple[str, ...]], ...]) -> list[Any]:
    """What `LLM.score` gives, once for all tests."""
    return LLM("demo", dtype="float32").score([(context, [*choices]) for context, choices in pairs], add_bos_token=True)


@pytest.mark.parametrize("form", ["index", "letter", "text", "parquet"])
def test_mmlu_as_it_is_published(tmp_path: Path, form: str) -> None:
    """One job file for JSON Lines and Parquet, whatever the answers are; the scores equal those of `LLM.score`."""
    rows = [json.loads(line) for line in (ROOT / "jobs" / "data" / "mmlu_questions.jsonl").read_text().splitlines()]
    if form in ("letter", "text"):
        rows = [
            {**row, "answer": "ABCD"[row["answer"]] if form == "letter" else row["choices"][row["answer"]]}
            for row in rows
        ]
    path = tmp_path / ("mmlu.parquet" if form == "parquet" else "mmlu.jsonl")
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("mmlu", tmp_path / "out", "-o", f"input.path={path}", "-o", "model.dtype=float32")
    assert [row["subject"] for row in found] == [row["subject"] for row in rows]
    contexts = [
        f"User: You are a very talented expert in {row['subject'].replace('_', ' ')}. Answer this question:\n"
        f"{row['question']}\n"
        + "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"], strict=True))
        + "\nAssistant: The answer is"
        for row in rows
    ]
    pairs = tuple((context, (" A", " B", " C", " D")) for context in contexts)
    for row, scores in zip(found, scores_of(pairs), strict=True):
        assert row["logprob"] == pytest.approx([score.logprob for score in scores], abs=1e-2)
    report = json.loads((tmp_path / "out.rwkv_batch" / "report.json").read_text())
    groups = report["score_groups"]["groups"]
    assert list(groups) == ["astronomy", "computer_science", "elementary_mathematics"]
    answers = [1, 1, 0, 3, 2, 1, 0]
    right = [row["best_choice"] == answer for row, answer in zip(found, answers, strict=True)]
    assert right == [row["correct"] for row in found]
    assert groups["elementary_mathematics"]["accuracy"]["value"] == pytest.approx(sum(right[:3]) / 3)
    assert report["scores"]["accuracy"]["value"] == pytest.approx(sum(right) / 7)


def test_eval_yaml_shows_every_setting() -> None:
    shown = yaml.safe_load((ROOT / "jobs" / "eval.yaml").read_text())
    settings = load_job(str(ROOT / "jobs" / "eval.yaml")).model_dump(exclude={"sampling"})
    for section, values in settings.items():
        if isinstance(values, dict):
            assert list(shown[section]) == list(values), section


KILLED_JOB = """
import os, signal, sys
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.run import main

commit = JobFiles.commit

def commit_and_die(*arguments):
    commit(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

JobFiles.commit = commit_and_die
main()
"""
"""Kills itself when it has committed rows for the first time."""


def test_a_killed_job_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    settings = (
        "output.rows_per_part=16",
        "output.flush_seconds=0",
        "sampling.max_tokens=12",
        "input.limit=40",
    )
    arguments = [argument for setting in settings for argument in ("-o", setting)]
    run("eval", tmp_path / "whole", *arguments)
    command = [sys.executable, "-c", KILLED_JOB, "jobs/eval.yaml", "-o", f"output.path={tmp_path}/killed", *arguments]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len([*tmp_path.glob("killed.rwkv_batch/unit-*/*.seg")]) == 1
    run("eval", tmp_path / "killed", *arguments)
    for path in (tmp_path / "whole").iterdir():
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "killed" / path.name)), path.name


def test_eval_explains_every_setting_and_marks_those_that_are_not_at_their_default() -> None:
    text = (ROOT / "jobs" / "eval.yaml").read_text()
    file, described = yaml.safe_load(text), {setting.name: setting for setting in describe_settings()}
    settings = {"task": file.pop("task")} | {f"{name}.{key}": v for name, s in file.items() for key, v in s.items()}
    settings |= {f"run.ray.{key}": value for key, value in settings.pop("run.ray").items()}
    assert settings.keys() == {name for name in described if not name.startswith("sampling.") or name in settings}
    for name, value in settings.items():
        (line,) = re.findall(
            rf"^ *{name.rpartition('.')[2]}: .*$", text[text.index(f"\n{name.partition('.')[0]}:") :], re.MULTILINE
        )[:1]
        assert ("# (*)" in line) == (described[name].is_required or value != described[name].default), name
