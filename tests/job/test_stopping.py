"""A run is asked to end by a signal or by a thread; the first reason stays, and a second signal ends it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from rwkv_batch import Stopped
from rwkv_batch.job.stopping import EXIT_KILLED, StopSignals


def test_a_thread_may_ask_a_run_to_end() -> None:
    stop = StopSignals()
    stop.check()
    with pytest.raises(Stopped, match="a reason: what was finished is committed; start the job again"), stop:
        with stop.interruptible():
            thread = threading.Thread(target=stop.request, args=("a reason",))
            thread.start()
            thread.join()
            stop.request("another reason")
        stop.check()


def test_the_next_block_that_may_end_does_not_begin() -> None:
    stop = StopSignals()
    stop.request("a reason")
    with pytest.raises(Stopped), stop.interruptible():
        raise AssertionError


def test_a_request_after_the_last_check_takes_nothing_from_a_run_that_is_done() -> None:
    with StopSignals() as stop:
        stop.request("a reason")


def test_a_signal_after_a_request_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopSignals(is_command=True) as stop:
        stop.request("a reason")
        signal.raise_signal(signal.SIGTERM)
        assert (ended, stop.requested) == ([], "a reason")
        signal.raise_signal(signal.SIGTERM)
        assert ended == [EXIT_KILLED]


def test_a_signal_of_a_program_gives_its_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Stopped, match="SIGINT"), StopSignals():
            signal.raise_signal(signal.SIGINT)
            received.append(signal.getsignal(signal.SIGINT))
        assert received == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGINT, before)
