"""Process pool: results, calls that fail or take too long, and processes that end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from rwkv_batch.process import python_command
from rwkv_batch.process_pool import CallFailed, ProcessCaller, ProcessPool

LONG = 600.0
MEMORY = 1 << 30


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr("rwkv_batch.process_pool.IDLE_SECONDS", 1.0)
    return ProcessPool("pool_answers:answers", {"key": b"value"}, 1, MEMORY)


def wait_until_gone(pid):
    """Waits until a process has ended. pytest-timeout limits the wait."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.01)


def test_calls_are_answered_by_one_process_that_stays(pool):
    found = [future.result() for future in [pool.submit(i, LONG) for i in range(5)]]
    assert [(shared, argument) for shared, argument, _ in found] == [({"key": b"value"}, i) for i in range(5)]
    (pid,) = {pid for *_, pid in found}
    assert pid != os.getpid()


def test_a_call_that_takes_too_long_ends_its_process_and_the_next_is_answered(pool):
    late, good = pool.submit("hang", 0.1), pool.submit("good", LONG)
    with pytest.raises(CallFailed) as failed:
        late.result()
    assert failed.value.is_late
    assert good.result()[1] == "good"


@pytest.mark.parametrize(
    ("argument", "reason"), [("raise", "ValueError: no such row"), ("die", "ended with code 3"), ("allocate", "Memory")]
)
def test_a_call_that_fails_leaves_the_others_alone(pool, argument, reason):
    bad, good = pool.submit(argument, LONG), pool.submit("good", LONG)
    with pytest.raises(CallFailed, match=reason) as failed:
        bad.result()
    assert not failed.value.is_late
    assert good.result()[1] == "good"


def test_a_process_that_cannot_start_fails_the_call():
    with pytest.raises(CallFailed, match="no such model"):
        ProcessPool("pool_answers:answers", "broken", 1, MEMORY).submit(1, LONG).result()


def test_a_process_without_calls_ends_and_another_one_starts(pool):
    *_, pid = pool.submit(1, LONG).result()
    wait_until_gone(pid)
    assert pool.submit(2, LONG).result()[1] == 2


def test_a_slow_call_does_not_stop_another_process_from_answering():
    pool = ProcessPool("pool_answers:answers", None, 2, MEMORY)
    late, good = pool.submit("hang", 2.0), pool.submit("good", LONG)
    assert good.result()[1] == "good"
    with pytest.raises(CallFailed):
        late.result()


@pytest.fixture
def caller():
    caller = ProcessCaller("pool_answers:answers", None, MEMORY)
    yield caller
    caller.end()


def test_a_caller_has_one_process_and_starts_no_thread_for_a_call(caller):
    *_, pid = caller.call(1, LONG)
    threads = threading.enumerate()
    assert {caller.call(i, LONG)[2] for i in range(20)} == {pid}
    assert threading.enumerate() == threads


def test_a_late_call_of_a_caller_fails_after_one_that_could_take_longer(caller):
    caller.call(1, LONG)
    with pytest.raises(CallFailed) as failed:
        caller.call("hang", 0.1)
    assert failed.value.is_late
    assert caller.call("good", LONG)[1] == "good"


def test_a_process_that_cannot_start_is_ended():
    before = {*threading.enumerate()}
    with pytest.raises(CallFailed, match="no such model"):
        ProcessCaller("pool_answers:answers", "broken", MEMORY).call(1, LONG)
    while {*threading.enumerate()} - before:
        time.sleep(0.01)  # pytest-timeout limits the wait


def test_a_caller_without_calls_ends_its_process(monkeypatch):
    monkeypatch.setattr("rwkv_batch.process_pool.IDLE_SECONDS", 0.1)
    caller = ProcessCaller("pool_answers:answers", None, MEMORY)
    *_, pid = caller.call(1, LONG)
    wait_until_gone(pid)
    assert caller.call(2, LONG)[1] == 2


def test_an_interrupted_call_gives_its_answer_to_no_other(caller, monkeypatch):
    caller.call(1, LONG)
    with monkeypatch.context() as patched:
        patched.setattr("rwkv_batch.process_pool.pickle.load", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            caller.call("interrupted", LONG)
    assert caller.call("next", LONG)[1] == "next"


def test_a_fork_has_a_process_of_its_own(caller):
    *_, pid = caller.call(1, LONG)
    if not (child := os.fork()):
        code = 2
        try:
            code = 0 if caller.call(2, LONG)[2] != pid else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert caller.call(3, LONG)[2] == pid


def run_pool(path: str) -> None:
    """Runs in a process of its own: writes the process id of its pool's process, which then hangs."""
    pool = ProcessPool("pool_answers:answers", None, 1, MEMORY)
    *_, pid = pool.submit(1, LONG).result()
    pool.submit("hang", LONG)
    with open(path + ".tmp", "w") as file:
        file.write(str(pid))
    os.replace(path + ".tmp", path)
    sys.stdin.read()


def main(path: str) -> None:
    run_pool(path)


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_a_process_in_a_call_ends_with_its_parent(tmp_path, end):
    path = tmp_path / "pid"
    parent = subprocess.Popen(python_command(__name__, str(path)), stdin=subprocess.PIPE)
    while not path.exists():
        assert parent.poll() is None
        time.sleep(0.01)
    if end is None:
        parent.stdin.close()
    else:
        parent.send_signal(end)
    assert parent.wait() == (0 if end is None else -end)
    wait_until_gone(int(path.read_text()))
