"""The command `eval`: its exit codes and what it prints; and the real thing, with a killed process and a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rwkv_batch.cli import main
from rwkv_batch.suite import command
from rwkv_batch.suite.lock import alone_in
from rwkv_batch.suite.messages import Answer, Check, Evaluate, Failed, Interrupted
from rwkv_batch.suite.result import read_failures, read_results
from suite.harness_tasks import write_random, write_tasks
from suite.suites import GRADE, FakeEvaluator, write_suite


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEvaluator:
    """Answers in place of the process."""
    fake = FakeEvaluator()
    monkeypatch.setattr(command, "Child", lambda start: fake)
    torch.save({"emb.weight": torch.zeros(8, 4)}, tmp_path / "rwkv-2.pth")
    return fake


def run(folder: Path, *arguments: str, **settings: Any) -> int:
    return main(["eval", write_suite(folder, **settings), "--models", str(folder / "rwkv-*.pth"), *arguments])


def test_all_is_well(evaluator: FakeEvaluator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "model   task",
        "rwkv-2  arc         to do",
        "rwkv-2  winogrande  to do",
        "rwkv-2  sums        to do",
        "rwkv-2  choices     to do",
    ]
    assert not (tmp_path / "out").exists()
    assert run(tmp_path) == 0
    printed = capsys.readouterr()
    assert "rwkv-2" in printed.out
    assert "rwkv_batch: [4/4] rwkv-2: choices: done in 1.5 s: accuracy 0.5" in printed.err.splitlines()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".lock", "models.json", "report.html", "results", "table.csv", "table.md",
    }  # fmt: skip
    assert run(tmp_path, "--dry-run", tasks=[{"lm_eval": "arc"}, {"name": "choices", "job": "choices.yaml"}]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "rwkv-2  arc      changed since its result",
        "rwkv-2  choices  done",
    ]
    assert run(tmp_path, "--output", str(tmp_path / "other")) == 0
    assert len(read_results(str(tmp_path / "other"))) == 4


def test_failures_have_an_exit_code(
    evaluator: FakeEvaluator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator._answers = lambda model, task: Failed("too large") if task == "sums" else None
    assert run(tmp_path) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "rwkv_batch: failed: rwkv-2: sums: too large"


def test_mistakes_have_an_exit_code(
    evaluator: FakeEvaluator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, tasks=[{"lm_eval": "arc", "limits": 3}]) == 2
    assert "tasks[0].limits: unknown key (did you mean 'limit'?)" in capsys.readouterr().err
    assert run(tmp_path, "--interval", "0", "--watch") == 2
    assert "--interval: got 0.0, expected a number of seconds above 0" in capsys.readouterr().err
    evaluator.problems = ("no task 'arc'",)
    assert run(tmp_path) == 2
    assert "no task 'arc'" in capsys.readouterr().err
    with alone_in(str(tmp_path / "out")):
        assert run(tmp_path) == 2
    assert "another process runs a suite there" in capsys.readouterr().err
    assert evaluator.asked == []


def test_a_signal_has_an_exit_code(evaluator: FakeEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(question: Check | Evaluate) -> Answer:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal has ended this")

    monkeypatch.setattr(evaluator, "ask", ask)
    evaluator.late = Interrupted()
    assert run(tmp_path) == 75


class Started:
    """The real command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rwkv_batch.cli", "eval", str(folder / "suite.yaml"), *arguments],
                env={**os.environ, "HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        """Waits until the log has a text."""
        while text not in self.log:
            assert self.process.poll() is None, self.log
            time.sleep(0.02)

    @property
    def child(self) -> psutil.Process:
        return next(one for one in psutil.Process(self.process.pid).children() if "suite.worker" in str(one.cmdline()))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two checkpoints and half of one, and a suite whose job takes long."""
    for number in (2, 10):
        write_random(tmp_path / f"rwkv-{number}.pth", number)
    (tmp_path / "rwkv-3.pth").write_bytes((tmp_path / "rwkv-2.pth").read_bytes()[:5000])
    write_tasks(tmp_path)
    harness = {"include_path": "tasks", "include_defaults": False}
    long = {"sampling.max_tokens": 150, "sampling.ignore_eos": True, "output.rows_per_part": 1}
    tasks = [
        {"lm_eval": ["local_words", "local_completions"], **harness},
        {"name": "sums", "job": "sums.yaml", "grade": GRADE, "set": long},
        {"name": "choices", "job": "choices.yaml"},
    ]
    settings: dict[str, Any] = {
        "model": {"tokenizer": "bytes", "dtype": "float32"},
        "engine": {"max_batch_size": 1, "device": "cpu"},
    }
    write_suite(tmp_path, tasks=tasks, **settings)
    yield tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Started]]:
    """Starts the command over all checkpoints. It is killed when the test ends."""
    started: list[Started] = []

    def start() -> Started:
        started.append(Started(folder, "--models", str(folder / "rwkv-*.pth")))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_a_killed_process_costs_a_task_and_a_signal_none(folder: Path, start: Callable[[], Started]) -> None:
    first = start()
    first.wait_for("[3/12] rwkv-2: sums")
    first.child.kill()
    first.wait_for("[11/12] rwkv-10: sums")
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == 75, first.log
    made = {(one.model, one.task): one for one in read_results(str(folder / "out"))}
    assert made.keys() == {
        ("rwkv-2", "local_words"),
        ("rwkv-2", "local_completions"),
        ("rwkv-2", "choices"),
        ("rwkv-10", "local_words"),
        ("rwkv-10", "local_completions"),
    }
    failures = {(one.model, one.task): one.error for one in read_failures(str(folder / "out"))}
    assert failures.pop(("rwkv-2", "sums")) == "its process ended with signal 9 (SIGKILL)"
    assert {model for model, _ in failures} == {"rwkv-3"}
    assert all("not a readable PyTorch file" in error for error in failures.values())
    assert "loading the harness" in first.log
    write_random(folder / "rwkv-3.pth", 3)
    again = start()
    assert again.process.wait(120) == 0, again.log
    results = {(one.model, one.task): one for one in read_results(str(folder / "out"))}
    assert len(results) == 12
    for pair, result in made.items():
        assert results[pair].metrics == result.metrics
    words = [results[model, "local_words"].metrics[0].value for model in ("rwkv-2", "rwkv-3", "rwkv-10")]
    assert len(set(words)) == 3
    assert "rwkv-10" in (folder / "out" / "table.md").read_text()
