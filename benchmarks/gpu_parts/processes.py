"""Processes of the parts: starts and watches them, kills one whose point takes too long, and starts the next one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic, sleep

from .plan import PARTS, Stage
from .record import FAILED, merge, note_end, read
from .task import Task

ROOT = Path(__file__).parents[2]
ATTEMPTS = 4
"""The largest number of processes, one after another, that may fail on points of a part."""
END_SECONDS = 3.0
"""Time between SIGTERM and SIGKILL."""
LAST_SECONDS = 15.0
"""Time that a shared part keeps for its last process, which measures missing points and makes the table."""
_POLL_SECONDS = 0.2

Say = Callable[[str], None]


class Worker:
    """Runs a task in a process, and in further ones if it fails; stops at the end of the task."""

    def __init__(self, task: Task, say: Say) -> None:
        self._task, self._say = task, say
        self._limit = inf if task.is_dry or task.rehearse else PARTS[task.part].point_seconds
        self._attempts = 0
        self._start()

    def _start(self) -> None:
        self._attempts += 1
        goes_on = self._task.goes_on or self._attempts > 1
        forgets = self._task.forgets and not goes_on
        self._process = start(replace(self._task, goes_on=goes_on, forgets=forgets))
        self._current, self._since = "", monotonic()
        self._why, self._told = "", 0.0

    def poll(self) -> bool:
        """Looks at the process, and starts the next one if needed; returns True when the task is over."""
        code, now = self._process.poll(), monotonic()
        current = self._found("current") or ""
        if current != self._current:
            self._current, self._since = current, now
        is_late = now > self._task.end
        if code is None and not self._why:
            if not is_late and now - self._since < self._limit:
                return False
            self._why, self._told = "no time was left" if is_late else f"stopped after {self._limit:.0f} s", now
            self._process.terminate()  # so that the process ends its own children, which are in other process groups
        if code is None and now - self._told < END_SECONDS:
            return False
        self._kill()
        if code and self._task.is_dry:
            self._say(f"{self._task.log}: its process ended with {code}")
        if self._why or code:
            self._note(self._why or f"its process ended with {code}", is_late)
        # If a point ended the process or the device, another process runs the points after it.
        goes_on = self._found("status") == FAILED and self._found("current") and not is_late
        if not goes_on or self._attempts == ATTEMPTS:
            return True
        self._start()
        return False

    def _found(self, field: str) -> str:
        """Returns a field of the task's file; empty without a file."""
        found = None if self._task.is_dry else read(self._task.path)
        return str(found[field]) if found else ""

    def _note(self, why: str, is_late: bool) -> None:
        """Writes the end of a process to its file, because a killed process cannot."""
        if not self._task.is_dry:
            self._say(f"{self._task.path.stem}: {why}{f', in {self._current}' if self._current else ''}")
            note_end(self._task.path, why, is_late)

    def terminate(self) -> None:
        """Sends SIGTERM to the process."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self, end: float) -> None:
        """Waits for the process after SIGTERM, then kills it with all of its group.

        Args:
            end: when it is killed, by `monotonic`.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(end - monotonic(), 0))
        self._kill()
        self._note("the command was stopped", is_late=True)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process may hang in a broken driver
            self._process.wait(END_SECONDS)


class PartRun:
    """Runs one part. Several processes share the points of a part without timing; then one process does the rest."""

    def __init__(self, task: Task, num_shares: int, say: Say) -> None:
        self._task, self._say = task, say
        self._is_last = num_shares == 1
        shares = [replace(task, share=(i, num_shares), end=task.end - LAST_SECONDS) for i in range(num_shares)]
        tasks = [task] if self._is_last else shares
        if not task.forgets:
            self._gather(task.path)  # results of a command that was stopped
        self._remove_shares()
        self._workers = [Worker(one, say) for one in tasks]

    def poll(self) -> bool:
        """Looks at the processes; returns True when the part is over."""
        are_over = [worker.poll() for worker in self._workers]
        if not all(are_over):
            return False
        if self._is_last:
            return True
        self._gather()
        self._remove_shares()
        self._is_last = True
        self._workers = [Worker(replace(self._task, goes_on=True, forgets=False), self._say)]
        return False

    def _shares(self) -> list[Path]:
        return sorted(self._task.path.parent.glob(f"shares/{self._task.part}-*.json"))

    def _gather(self, *others: Path) -> None:
        if shares := self._shares():
            merge(self._task.path, [*shares, *others])

    def _remove_shares(self) -> None:
        for path in self._shares():
            path.unlink()

    def terminate(self) -> None:
        for worker in self._workers:
            worker.terminate()

    def stop(self, end: float) -> None:
        for worker in self._workers:
            worker.stop(end)


def run_stage(
    stage: Stage, tasks: Sequence[Task], num_processes: int, say: Say, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Runs parts at the same time until all are over.

    Args:
        meanwhile: called about five times a second.
    """
    each = max(num_processes // len(tasks), 1)
    running: list[Worker | PartRun] = []
    try:
        if stage.is_dry:
            shares = [replace(task, share=(i, each), is_dry=True) for task in tasks for i in range(each)]
            running += [Worker(task, say) for task in shares]
        else:
            running += [PartRun(task, each if PARTS[task.part].is_shared else 1, say) for task in tasks]
        while running:
            sleep(_POLL_SECONDS)
            meanwhile()
            running = [one for one in running if not one.poll()]
    finally:
        for one in running:
            one.terminate()
        end = monotonic() + END_SECONDS
        for one in running:
            one.stop(end)


def start(task: Task) -> subprocess.Popen[bytes]:
    """Starts a process for a task, in a process group of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts.inside", task.to_json()]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if task.compiled:
        environment["TRITON_CACHE_DIR"] = task.compiled
    if task.rehearse:
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as stack:
        log = None
        if task.is_dry:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(task.log.open("wb"))
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log)
