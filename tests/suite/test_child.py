"""The process that evaluates: it stays for the next question, is replaced when it has ended, and ends when asked to."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from rwkv_batch.suite import child as suite_child
from rwkv_batch.suite.child import Child
from rwkv_batch.suite.messages import Check, Checked, Done, Ended, Evaluate, Failed, Interrupted
from rwkv_batch.suite.models import Checkpoint
from rwkv_batch.suite.tasks import Task


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setattr(suite_child, "PROGRAM", "suite.fake_program")
    start: Any = "start"
    made = Child(start)
    yield made
    made.close()


def evaluate(name: str) -> Evaluate:
    return Evaluate(Checkpoint("rwkv-2", "rwkv-2.pth", "abc", None), Task(name, {}), "out")


def pid(child: Child) -> int:
    answer = child.ask(Check())
    assert isinstance(answer, Checked)
    assert answer.problems[1] == "start"
    return int(answer.problems[0])


def test_one_process_answers_until_it_ends(child: Child) -> None:
    first = pid(child)
    assert isinstance(child.ask(evaluate("a")), Done)
    assert pid(child) == first
    assert child.ask(evaluate("killed")) == Ended("signal 9 (SIGKILL)")
    second = pid(child)
    assert second != first
    assert child.ask(evaluate("ends")) == Failed("a device error", ends=True)
    third = pid(child)
    assert third not in (first, second)
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(third, 0)


class Signal(Exception):
    """What a handler of signals raises."""


@pytest.mark.parametrize("name", ["long", "stubborn"])
def test_a_task_is_interrupted(child: Child, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sends SIGUSR2 once it serves."""
    monkeypatch.setattr(suite_child, "STOP_SECONDS", 60.0 if name == "long" else 0.2)
    before = signal.signal(signal.SIGUSR2, _raise)
    process = pid(child)
    try:
        with pytest.raises(Signal):
            child.ask(evaluate(name))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert child.interrupt() == Interrupted()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert child.interrupt() == Interrupted()  # there is none


def _raise(*_: object) -> None:
    raise Signal
