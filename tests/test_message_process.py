"""A process and its messages: what is sent arrives, and its end is told once, with the reason."""

from __future__ import annotations

import queue
import signal
from typing import Any

import pytest

from rwkv_batch import message_process
from rwkv_batch.message_process import MessageProcess

PROGRAM = "fakes.message_program"


class Told:
    """A process, and what is told of it."""

    def __init__(self, first: Any, on_message: Any = None) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ends: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.process = MessageProcess(PROGRAM, first, on_message or self.messages.put, self.ends.put)

    def end(self) -> str:
        """How the process has ended. It is told once."""
        how = self.ends.get(timeout=60)
        self.process.kill()
        assert self.ends.empty()
        return how


def test_messages_of_any_size_come_back_in_their_order() -> None:
    sent = ["first", {"rows": list(range(100_000))}, b"x" * 5_000_000]
    told = Told(sent[0])
    for message in sent[1:]:
        told.process.send(message)
    assert [told.messages.get(timeout=60) for _ in sent] == sent
    told.process.send(7)
    assert told.end() == "exit code 7"
    told.process.send("into the void")


def test_a_kill_is_told() -> None:
    told = Told("first")
    assert told.messages.get(timeout=60) == "first"
    told.process.kill()
    assert told.end() == "signal 9 (SIGKILL)"


def test_an_end_in_the_middle_of_a_message_is_an_end() -> None:
    assert Told("half").end() == "exit code 3"


def test_what_cannot_be_read_is_the_reason() -> None:
    """Else the rows of a worker would be blamed for a signal that its parent sent."""
    assert Told("unreadable").end() == "a message of it cannot be read: ImportError: no module named 'theirs'"

    def refuse(message: Any) -> None:
        raise KeyError(message)

    assert Told("first", refuse).end() == "a message of it cannot be read: KeyError: 'first'"


def test_a_first_message_that_cannot_be_pickled_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_process.subprocess, "Popen", None)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=r"pickle|local object"):
        Told(lambda: None)


def test_a_process_that_does_not_end_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a broken driver survives SIGKILL for as long as the driver does not answer."""
    monkeypatch.setattr(message_process, "END_SECONDS", 0.1)
    told = Told("first")
    assert told.messages.get(timeout=60) == "first"
    popen: Any = told.process._process
    with monkeypatch.context() as patch:
        patch.setattr(popen, "kill", lambda: popen.send_signal(signal.SIGSTOP))
        told.process.kill()
        assert told.ends.get(timeout=60) == "it was killed, and does not end"
    popen.kill()
    popen.wait(60)
    assert told.ends.empty()
