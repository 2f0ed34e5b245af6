"""The client side of `peer_workers.protocol`: starts a worker, sends it questions, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from threading import Timer
from typing import Any

from .peer_workers.protocol import Task

ROOT = Path(__file__).parent.parent
START_SECONDS = 600
"""Time limits. Loading may include converting a file or building kernels."""
POINT_SECONDS = 300


class PeerFailed(Exception):
    """A worker cannot be used. The message gives the reason."""


def end(process: subprocess.Popen[str]) -> None:
    """Closes the input of a process, which ends it; kills it if it does not end in time."""
    assert process.stdin and process.stdout
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class PeerProcess:
    """A worker that has loaded its model.

    Args:
        module: of `benchmarks.peer_workers`.
        python: the interpreter that has the engine.
        log: file for what the engine prints.
        root: the checkout whose worker runs.

    Raises:
        PeerFailed: the worker does not start.
    """

    def __init__(self, module: str, python: str, task: Task, log: Path, root: Path = ROOT) -> None:
        self._log = log
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(task.threads), "PYTHONPATH": str(root)}
        command = [python, "-m", f"benchmarks.peer_workers.{module}"]
        pipe = subprocess.PIPE
        with log.open("w") as file:
            try:
                self._process = subprocess.Popen(
                    command, cwd=root, env=environment, stdin=pipe, stdout=pipe, stderr=file, text=True
                )
            except OSError as error:
                raise PeerFailed(f"{python}: {error.strerror}") from error
        try:
            self.about = self.ask(asdict(task), START_SECONDS)
        except PeerFailed:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, question: dict[str, Any], seconds: float = POINT_SECONDS) -> dict[str, Any]:
        """Sends a question and returns the answer, which may be {"error": ...}.

        Raises:
            PeerFailed: the worker ended, or took too long and was killed.
        """
        assert self._process.stdin and self._process.stdout
        late = Timer(seconds, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            late.cancel()
        if line:
            return json.loads(line)
        code = self._process.wait()
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        late_words = f"no answer within {seconds:.0f} s" if code == -9 else f"its process ended with {code}"
        raise PeerFailed(": ".join([late_words, *said[-1:]])[:300])

    def close(self) -> None:
        """Ends the worker, also in the middle of a measurement."""
        end(self._process)
