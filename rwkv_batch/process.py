"""Calls of a function in another process. However that process ends, the caller goes on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

Result = TypeVar("Result")

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(*sys.argv[2:])"
POLL_SECONDS = 0.02
_END_SECONDS = 5.0
"""How long to wait for a killed process. A process that waits for a broken driver never ends."""


class Ended(NamedTuple):
    """How a process ended.

    Args:
        answer: the function's result; None if the process ended without one.
        code: exit code; minus the signal's number if a signal ended the process; None if the process did not end.
        is_late: the time limit was reached, and the process was killed.
        log: the last 4000 characters of standard output and standard error.
        seconds: from the start of the process to its end.
    """

    answer: Any
    code: int | None
    is_late: bool
    log: str
    seconds: float


class Process:
    """Starts a process that calls a function.

    Args:
        function: "package.module:function"; its result must be plain JSON.
        arguments: keyword arguments, plain JSON.
        time_limit: seconds after which the process is killed, with all processes that it started.
        folder: an empty folder for the answer and the log.
    """

    def __init__(self, function: str, arguments: Mapping[str, Any], time_limit: float, folder: Path) -> None:
        self._answer, self._log = folder / "answer.json", folder / "log.txt"
        command = python_command(__name__, function, json.dumps(arguments), str(self._answer))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._start = monotonic()
        self._time_limit = time_limit

    def wait(self) -> Ended:
        """Waits for the end of the process, at most until its time limit, and says how it ended."""
        try:
            while (ended := self.ended()) is None:
                sleep(POLL_SECONDS)
            return ended
        finally:
            self.kill()

    def ended(self) -> Ended | None:
        """How the process ended; None while it runs within its time limit."""
        seconds = monotonic() - self._start
        is_late = self._process.poll() is None and seconds > self._time_limit
        if self._process.returncode is None and not is_late:
            return None
        self.kill()
        answer = json.loads(self._answer.read_text()) if self._answer.exists() else None
        log = self._log.read_text(errors="replace")[-4000:]
        return Ended(answer, self._process.returncode, is_late, log, seconds)

    def kill(self) -> None:
        """Kills the process and the processes that it has started, if they run, and waits for its end."""
        self.send_kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def send_kill(self) -> None:
        """Like `kill`, but without waiting. Several processes can be killed before the first is waited for."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that calls `main(*arguments)` of a module, with this process's search path for modules.

    It does not import the caller's main module, so that a script, a notebook and a test can run it.
    """
    found_at = json.dumps([os.fsdecode(path) for path in sys.path])
    return [sys.executable, "-c", _START.format(module=module), found_at, *arguments]


def main(function: str, arguments: str, path: str) -> None:
    """The program of the process. The file `path` appears when the answer in it is complete."""
    module, _, name = function.partition(":")
    answer = getattr(import_module(module), name)(**json.loads(arguments))
    unfinished = Path(path + ".tmp")
    unfinished.write_text(json.dumps(answer))
    os.replace(unfinished, path)


def call_in_process(function: Callable[..., Result], **arguments: Any) -> Result:
    """Calls a function in another process, and returns its result.

    This is for a function that changes its process, such as one that initializes CUDA.

    Args:
        function: a function of a module; the other process imports it by name.
        arguments: keyword arguments. They and the result must be possible to pickle.

    Raises:
        Exception: whatever the function raises.
        RuntimeError: the process ended without an answer; the message has the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, answer = Path(folder, "call"), Path(folder, "answer")
        call.write_bytes(pickle.dumps((function, arguments)))
        paths = {"call": str(call), "answer": str(answer)}
        ended = Process(f"{__name__}:answer_call", paths, math.inf, Path(folder)).wait()
        if not answer.exists():
            last = (ended.log.strip().splitlines() or ["it printed nothing"])[-1]
            raise RuntimeError(f"{function.__name__}: its process ended with code {ended.code}: {last}")
        result, error = pickle.loads(answer.read_bytes())
        if error is not None:
            raise error
        return result


def answer_call(call: str, answer: str) -> None:
    """Calls the function in the file `call`, and writes its result or its exception to the file `answer`.

    This runs in the process that `call_in_process` starts.
    """
    function, arguments = pickle.loads(Path(call).read_bytes())
    result, error = None, None
    try:
        result = function(**arguments)
    except Exception as raised:
        error = raised
    Path(answer).write_bytes(pickle.dumps((result, error)))
