"""One call of a function in a process of its own: whatever becomes of the process, the caller goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main(*sys.argv[2:])"
POLL_SECONDS = 0.02
_END_SECONDS = 5.0
"""How long a process that was killed is waited for. One that waits for a broken driver never ends."""


class Ended(NamedTuple):
    """How a process ended.

    Args:
        answer: what the function gave; None where it gave nothing.
        code: exit code; that of a signal is its number, negative; None where the process did not end.
        is_late: the time limit was reached, and the process was killed.
        log: the end of what the process wrote to standard output and standard error.
        seconds: from start to end.
    """

    answer: Any
    code: int | None
    is_late: bool
    log: str
    seconds: float


class Process:
    """A process that calls a function.

    Args:
        function: "package.module:function"; what it returns is plain JSON.
        arguments: by name, plain JSON.
        time_limit: seconds after which the process is killed, with all processes that it started.
        folder: an empty folder for the answer and the log.
    """

    def __init__(self, function: str, arguments: Mapping[str, Any], time_limit: float, folder: Path) -> None:
        self._answer, self._log = folder / "answer.json", folder / "log.txt"
        found_at = json.dumps([os.fsdecode(path) for path in sys.path])
        command = [sys.executable, "-c", _START.format(module=__name__), found_at]
        command += [function, json.dumps(arguments), str(self._answer)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._start = monotonic()
        self._time_limit = time_limit

    def wait(self) -> Ended:
        """How the process ended, when it has; at the latest when its time is over."""
        try:
            while (ended := self.ended()) is None:
                sleep(POLL_SECONDS)
            return ended
        finally:
            self.kill()

    def ended(self) -> Ended | None:
        """How the process ended; None while it runs and has time left."""
        seconds = monotonic() - self._start
        is_late = self._process.poll() is None and seconds > self._time_limit
        if self._process.returncode is None and not is_late:
            return None
        self.kill()
        answer = json.loads(self._answer.read_text()) if self._answer.exists() else None
        log = self._log.read_text(errors="replace")[-4000:]
        return Ended(answer, self._process.returncode, is_late, log, seconds)

    def kill(self) -> None:
        """End the process, if it runs, and those that it has started, and wait for it."""
        self.send_kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def send_kill(self) -> None:
        """As `kill`, without waiting: of several processes all can be told before one is waited for."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def main(function: str, arguments: str, path: str) -> None:
    """What the process does: the answer appears in the file `path` when it is complete."""
    module, _, name = function.partition(":")
    answer = getattr(import_module(module), name)(**json.loads(arguments))
    unfinished = Path(path + ".tmp")
    unfinished.write_text(json.dumps(answer))
    os.replace(unfinished, path)
