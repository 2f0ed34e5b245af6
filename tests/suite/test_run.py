"""The run of a suite: which pairs are evaluated, in which order, what is kept, and what is tried again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_batch.errors import ConfigurationError, Stopped
from rwkv_batch.job.stopping import StopSignals
from rwkv_batch.suite import run as suite_run
from rwkv_batch.suite.load import load_suite
from rwkv_batch.suite.messages import Answer, Check, Ended, Evaluate, Failed, Interrupted
from rwkv_batch.suite.result import read_failures, read_results
from rwkv_batch.suite.run import SuiteRun
from suite.suites import FakeEvaluator, done, write_suite

TASKS = ["arc", "winogrande", "sums", "choices"]


@pytest.fixture
def stop() -> Iterator[StopSignals]:
    with StopSignals(is_command=True) as stop:
        yield stop


@pytest.fixture
def start(tmp_path: Path, stop: StopSignals) -> Callable[..., Any]:
    """`start(evaluator, interval=None, **settings of the suite)`: a run over all checkpoints of the folder."""

    def start(evaluator: Any, interval: float | None = None, **settings: Any) -> SuiteRun:
        suite = load_suite(write_suite(tmp_path, **settings))
        return SuiteRun(suite, [f"{tmp_path}/rwkv-*.pth"], evaluator, stop, said.append, interval)

    said: list[str] = []
    start.said = said  # type: ignore[attr-defined]
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 2)
    return start


def checkpoint(folder: Path, number: int, old: bool = False) -> Path:
    """Writes a file that opens as a checkpoint. Returns its path."""
    path = folder / f"rwkv-{number}.pth"
    torch.save({"emb.weight": torch.full((8, 4), float(number))}, path)
    if old:
        os.utime(path, (1e9, 1e9))
    return path


def kept(folder: Path) -> dict[tuple[str, str], float]:
    """(model, task) → the first metric of its result."""
    return {(one.model, one.task): one.metrics[0].value for one in read_results(str(folder / "out"))}


def failed(folder: Path) -> dict[tuple[str, str], str]:
    return {(one.model, one.task): one.error for one in read_failures(str(folder / "out"))}


def test_every_task_runs_with_every_checkpoint_once(start: Any, tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    start(evaluator).run()
    pairs = [(model, task) for model in ("rwkv-2", "rwkv-10") for task in TASKS]
    assert evaluator.asked == pairs
    assert evaluator.checks == 1
    assert kept(tmp_path) == dict.fromkeys(pairs, 0.5)
    assert start.said[2:5] == [
        "suite suite: 2 checkpoints, 4 tasks; 0 of 8 results are there",
        "[1/8] rwkv-2: arc",
        "[1/8] rwkv-2: arc: done in 1.5 s: accuracy 0.5",
    ]
    (result, *_) = read_results(str(tmp_path / "out"))
    assert result.settings["evaluation"] == {"rows": 2}
    assert result.settings["checkpoint"] == str(tmp_path / "rwkv-10.pth")
    again = FakeEvaluator()
    start(again).run()
    assert (again.asked, again.checks) == ([], 0)


def test_what_has_changed_is_evaluated_again(start: Any, tmp_path: Path) -> None:
    start(FakeEvaluator()).run()
    torch.save({"emb.weight": torch.zeros(8, 4)}, tmp_path / "rwkv-2.pth")
    evaluator = FakeEvaluator(lambda model, task: done(0.75))
    start(evaluator).run()
    assert evaluator.asked == [("rwkv-2", task) for task in TASKS]
    assert kept(tmp_path)["rwkv-2", "arc"] == 0.75
    evaluator = FakeEvaluator()
    tasks = [{"lm_eval": "arc", "limit": 6}, {"name": "choices", "job": "choices.yaml"}]
    run = start(evaluator, tasks=tasks)
    assert [(run.is_done(pair), run.is_changed(pair)) for pair in run.look()] == [(False, True), (True, False)] * 2
    run.run()
    assert evaluator.asked == [("rwkv-2", "arc"), ("rwkv-10", "arc")]


def test_a_failure_costs_one_task_and_is_tried_again_at_the_next_start(start: Any, tmp_path: Path) -> None:
    def answer(model: str, task: str) -> Answer | None:
        if (model, task) == ("rwkv-2", "sums"):
            return Ended("signal 9 (SIGKILL)")
        return Failed("out of memory", ends=True) if (model, task) == ("rwkv-10", "arc") else None

    evaluator = FakeEvaluator(answer)
    run = start(evaluator)
    run.run()
    assert len(evaluator.asked) == 8
    expected = {("rwkv-2", "sums"): "its process ended with signal 9 (SIGKILL)", ("rwkv-10", "arc"): "out of memory"}
    assert failed(tmp_path) == expected
    assert len(kept(tmp_path)) == 6
    assert [*run.failures()] == [
        "failed: rwkv-2: sums: its process ended with signal 9 (SIGKILL)",
        "failed: rwkv-10: arc: out of memory",
    ]
    again = FakeEvaluator()
    run = start(again)
    run.run()
    assert again.asked == [*expected]
    assert failed(tmp_path) == {}
    assert [*run.failures()] == []


def test_a_checkpoint_that_cannot_be_used_fails_all_of_its_tasks_at_once(start: Any, tmp_path: Path) -> None:
    broken = FakeEvaluator(
        lambda model, task: Failed("no checkpoint", is_of_checkpoint=True) if model == "rwkv-2" else None
    )
    run = start(broken)
    run.run()
    assert broken.asked == [("rwkv-2", "arc"), *(("rwkv-10", task) for task in TASKS)]
    assert failed(tmp_path) == {("rwkv-2", task): "no checkpoint" for task in TASKS}
    assert [*run.failures()] == ["failed: rwkv-2: arc, winogrande, sums, choices: no checkpoint"]


def test_a_result_that_is_no_longer_true_does_not_stay_beside_a_failure(start: Any, tmp_path: Path) -> None:
    start(FakeEvaluator()).run()
    torch.save({"emb.weight": torch.zeros(8, 4)}, tmp_path / "rwkv-2.pth")
    start(FakeEvaluator(lambda model, task: Failed("broken", is_of_checkpoint=True))).run()
    assert {model for model, _ in kept(tmp_path)} == {"rwkv-10"}
    assert failed(tmp_path) == {("rwkv-2", task): "broken" for task in TASKS}


def test_a_checkpoint_that_changes_while_it_is_evaluated_has_no_result(start: Any, tmp_path: Path) -> None:
    def answer(model: str, task: str) -> None:
        if (model, task) == ("rwkv-2", "sums"):
            torch.save({"emb.weight": torch.zeros(9, 4)}, tmp_path / "rwkv-2.pth")

    start(FakeEvaluator(answer)).run()
    assert failed(tmp_path)["rwkv-2", "sums"] == "the checkpoint has changed while it was evaluated"
    assert ("rwkv-2", "arc") in kept(tmp_path)


def test_mistakes_are_found_before_anything_is_evaluated(start: Any, tmp_path: Path) -> None:
    evaluator = FakeEvaluator()
    evaluator.problems = ("tasks[0].lm_eval: the harness has no task 'arc'",) * 2
    with pytest.raises(ConfigurationError) as caught:
        start(evaluator).run()
    assert str(caught.value) == f"{tmp_path}/suite.yaml: tasks[0].lm_eval: the harness has no task 'arc'"
    (tmp_path / "rwkv-2.pth").unlink()
    (tmp_path / "rwkv-10.pth").unlink()
    with pytest.raises(ConfigurationError, match=r"there is no such file or folder"):
        start(evaluator).run()
    assert evaluator.asked == []


class Signalled(FakeEvaluator):
    """A signal comes while a task is evaluated."""

    def ask(self, question: Check | Evaluate) -> Answer:
        answer = super().ask(question)
        if isinstance(question, Evaluate) and question.task.name == "winogrande":
            signal.raise_signal(signal.SIGTERM)
        return answer


@pytest.mark.parametrize(
    ("late", "is_kept"), [(Interrupted(), False), (Ended("exit code 1"), False), (done(0.1), True)]
)
def test_a_signal_stops_the_run(start: Any, tmp_path: Path, late: Answer, is_kept: bool) -> None:
    evaluator = Signalled()
    evaluator.late = late
    with pytest.raises(Stopped):
        start(evaluator).run()
    expected = {("rwkv-2", "arc"): 0.5, **({("rwkv-2", "winogrande"): 0.1} if is_kept else {})}
    assert kept(tmp_path) == expected
    assert failed(tmp_path) == {}


@pytest.mark.parametrize("answer", [Interrupted(), Ended("signal 15 (SIGTERM)")])
def test_a_signal_to_the_process_that_evaluates_stops_the_run(start: Any, tmp_path: Path, answer: Answer) -> None:
    """A scheduler sends SIGTERM to all processes, in any order."""
    evaluator = FakeEvaluator(lambda model, task: answer if task == "sums" else None)
    evaluator.late = Interrupted()
    with pytest.raises(Stopped):
        start(evaluator).run()
    assert evaluator.asked == [("rwkv-2", "arc"), ("rwkv-2", "winogrande"), ("rwkv-2", "sums")]
    assert failed(tmp_path) == {}


def test_new_checkpoints_are_taken_until_a_signal(
    start: Any, tmp_path: Path, stop: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 10):
        checkpoint(tmp_path, number, old=True)
    evaluator = FakeEvaluator(lambda model, task: Ended("exit code 1") if (model, task) == ("rwkv-3", "sums") else None)
    looks = iter(["new", "still", "nothing", "signal"])
    asked = []

    def sleep(seconds: float) -> None:
        asked.append((seconds, len(evaluator.asked)))
        what = next(looks)
        if what == "new":
            checkpoint(tmp_path, 3)
        if what == "signal":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(suite_run, "sleep", sleep)
    run = start(evaluator, interval=77.0)
    run.run()
    assert asked == [(77.0, 8), (77.0, 8), (77.0, 12), (77.0, 12)]
    assert evaluator.asked[8:] == [("rwkv-3", task) for task in TASKS]
    assert [*run.failures()] == ["failed: rwkv-3: sums: its process ended with exit code 1"]
    assert stop.requested == "SIGINT"


def test_a_run_that_waits_for_checkpoints_may_begin_without_one(start: Any, tmp_path: Path) -> None:
    for number in (2, 10):
        (tmp_path / f"rwkv-{number}.pth").unlink()
    evaluator = FakeEvaluator()
    evaluator.problems = ("tasks[0].lm_eval: the harness has no task 'arc'",)
    run = start(evaluator, interval=1.0)
    assert run.look() == []
    with pytest.raises(ConfigurationError, match="no task 'arc'"):
        run.run()
