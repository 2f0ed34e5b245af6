"""The processes of the parts: started, watched, killed when a point takes too long, and started again after it."""

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
"""Processes that may die of a part's points, one after another."""
END_SECONDS = 3.0
"""What a process that is told to end gets before it is killed."""
LAST_SECONDS = 15.0
"""Of a part whose points are shared out: for the process that measures what is missing and makes the table."""
_POLL_SECONDS = 0.2

Say = Callable[[str], None]


class Worker:
    """A process that works on a task, and those that take its place; the task is stopped at its end."""

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
        """Whether the task is over."""
        code, now = self._process.poll(), monotonic()
        current = self._found("current") or ""
        if current != self._current:
            self._current, self._since = current, now
        is_late = now > self._task.end
        if code is None and not self._why:
            if not is_late and now - self._since < self._limit:
                return False
            self._why, self._told = "no time was left" if is_late else f"stopped after {self._limit:.0f} s", now
            self._process.terminate()  # it ends processes of its own that are in other groups
        if code is None and now - self._told < END_SECONDS:
            return False
        self._kill()
        if code and self._task.is_dry:
            self._say(f"{self._task.log}: its process ended with {code}")
        if self._why or code:
            self._note(self._why or f"its process ended with {code}", is_late)
        # Where one point took the process or the device with it, another process does those that come after it.
        goes_on = self._found("status") == FAILED and self._found("current") and not is_late
        if not goes_on or self._attempts == ATTEMPTS:
            return True
        self._start()
        return False

    def _found(self, field: str) -> str:
        """What the task's file says; empty where there is none."""
        found = None if self._task.is_dry else read(self._task.path)
        return str(found[field]) if found else ""

    def _note(self, why: str, is_late: bool) -> None:
        """A process that ended early could not say so itself."""
        if not self._task.is_dry:
            self._say(f"{self._task.path.stem}: {why}{f', in {self._current}' if self._current else ''}")
            note_end(self._task.path, why, is_late)

    def terminate(self) -> None:
        """Tell the process to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self, end: float) -> None:
        """End the process, which was told to, and all that it has started.

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
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process in a broken driver may never end
            self._process.wait(END_SECONDS)


class PartRun:
    """One part: several processes that share its points out, where nothing is timed, then one for the rest."""

    def __init__(self, task: Task, num_shares: int, say: Say) -> None:
        self._task, self._say = task, say
        self._is_last = num_shares == 1
        shares = [replace(task, share=(i, num_shares), end=task.end - LAST_SECONDS) for i in range(num_shares)]
        tasks = [task] if self._is_last else shares
        if not task.forgets:
            self._gather(task.path)  # what a command that was stopped has left
        self._remove_shares()
        self._workers = [Worker(one, say) for one in tasks]

    def poll(self) -> bool:
        """Whether the part is over."""
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
    """Run parts at the same time, until all of them are over.

    Args:
        meanwhile: called again and again.
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
    """A process for a task, the first of a group of its own."""
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
