"""The program that evaluates: what it loads and frees, and how failures become answers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkv_batch.errors import CapacityError, CheckpointError, MissingExtraError, Stopped
from rwkv_batch.suite import job_task
from rwkv_batch.suite.load import load_suite
from rwkv_batch.suite.messages import Check, Checked, Done, Evaluate, Failed, Interrupted, Start
from rwkv_batch.suite.models import Checkpoint
from rwkv_batch.suite.tasks import HarnessTask, Task
from rwkv_batch.suite.worker import Worker
from suite.suites import done, write_suite


class FakeHarness:
    error: BaseException | None = None

    def problems(self) -> list[str]:
        return ["a problem"]

    def evaluate(self, llm: Any, task: HarnessTask, cache: str) -> Done:
        events.append(f"{task.name} with {llm.path}, cache {cache}")
        if self.error is not None:
            raise self.error
        return done()


class FakeLLM:
    def __init__(self, model: Any, engine: Any) -> None:
        self.path = model.model
        events.append(f"load {model.model} {model.tokenizer} {engine.batch_invariant}")

    @classmethod
    def from_summary(cls, summary: Any) -> FakeLLM:
        return cls(*summary)

    def close(self) -> None:
        events.append(f"close {self.path}")


events: list[str] = []


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Task]:
    llm = SimpleNamespace(LLM=FakeLLM, inspect_model=lambda model, engine: (model, engine))
    monkeypatch.setitem(sys.modules, "rwkv_batch.llm", llm)
    monkeypatch.setitem(sys.modules, "rwkv_batch.suite.harness", SimpleNamespace(Harness=lambda tasks: FakeHarness()))
    monkeypatch.setattr(FakeHarness, "error", None)
    monkeypatch.setattr(job_task, "run_job_task", run_job_task)
    events.clear()
    return {task.name: task for task in load_suite(write_suite(tmp_path)).tasks}


def run_job_task(checkpoint: Checkpoint, task: Task, folder: str) -> Done:
    events.append(f"{task.name} of {checkpoint.id}")
    return done()


@pytest.fixture
def worker(tasks: dict[str, Task], tmp_path: Path) -> Worker:
    suite = load_suite(str(tmp_path / "suite.yaml"))
    return Worker(Start(suite.model, suite.engine, ()))


def question(task: Task, number: int = 2) -> Evaluate:
    return Evaluate(Checkpoint(f"rwkv-{number}", f"{number}.pth", "abc", None), task, "/out")


def test_a_checkpoint_is_loaded_once_and_freed_for_the_next(worker: Worker, tasks: dict[str, Task]) -> None:
    for number, names in ((2, ["arc", "winogrande", "sums", "choices"]), (3, ["arc"]), (4, ["arc"])):
        for name in names:
            answer = worker.answer(question(tasks[name], number))
            assert isinstance(answer, Done)
            assert (answer.metrics, answer.settings) == (done().metrics, done().settings)
            assert 0 <= answer.seconds < 60
    assert events == [
        "load 2.pth bytes True",
        "arc with 2.pth, cache /out/cache/rwkv-2/arc",
        "winogrande with 2.pth, cache /out/cache/rwkv-2/winogrande",
        "close 2.pth",
        "sums of rwkv-2",
        "choices of rwkv-2",
        "load 3.pth bytes True",
        "arc with 3.pth, cache /out/cache/rwkv-3/arc",
        "close 3.pth",
        "load 4.pth bytes True",
        "arc with 4.pth, cache /out/cache/rwkv-4/arc",
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CheckpointError("half a file"), Failed("half a file", is_of_checkpoint=True)),
        (CapacityError("too large"), Failed("too large")),
        (
            MissingExtraError("it", "lm_eval", "lm-eval"),
            Failed("it needs the package 'lm_eval': pip install 'rwkv_batch[lm-eval]'"),
        ),
        (RuntimeError("CUDA error: 700"), Failed("RuntimeError: CUDA error: 700", ends=True)),
        (Stopped("SIGTERM"), Interrupted()),
    ],
)
def test_errors_are_answers(worker: Worker, tasks: dict[str, Task], error: Any, expected: Any) -> None:
    FakeHarness.error = error
    assert worker.answer(question(tasks["arc"])) == expected


def test_a_missing_harness_is_a_problem_of_the_suite(
    worker: Worker, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker.answer(Check()) == Checked(("a problem",))

    def missing(_: Any) -> None:
        raise MissingExtraError("it", "lm_eval", "lm-eval")

    monkeypatch.setitem(sys.modules, "rwkv_batch.suite.harness", SimpleNamespace(Harness=missing))
    other = Worker(worker._start)
    assert other.answer(Check()) == Checked(("it needs the package 'lm_eval': pip install 'rwkv_batch[lm-eval]'",))
