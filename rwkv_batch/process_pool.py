"""Calls of a function in processes that stay for the next call. A call that takes too long ends its process."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from time import monotonic, sleep
from typing import Any

from .process import python_command

IDLE_SECONDS = 30.0
"""A process without a call for this long ends."""
_PARENT_SECONDS = 0.5
"""How often a process looks whether its parent still runs."""


class CallFailed(Exception):
    """A call has no result.

    Args:
        is_late: it took longer than its time limit, so its process was ended.
    """

    def __init__(self, message: str, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


class ProcessPool:
    """Calls a function in other processes, which start with the first calls.

    Args:
        function: "package.module:function". Each process calls it once, with `shared`; what it returns answers the
            calls.
        shared: anything that can be pickled.
        num_processes: the most processes that run at the same time.
        memory_bytes: what a process may allocate, where the system can limit it. An allocation beyond it fails.
    """

    def __init__(self, function: str, shared: Any, num_processes: int, memory_bytes: int) -> None:
        self._new_caller = partial(ProcessCaller, function, shared, memory_bytes)
        self._num_processes = num_processes
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[tuple[Future[Any], Any, float]] = queue.SimpleQueue()
        self._num_threads = 0
        self._num_open = 0  # calls without a result
        self._pid = os.getpid()

    def submit(self, argument: Any, time_limit: float) -> Future[Any]:
        """Starts a call.

        Args:
            argument: anything that can be pickled.
            time_limit: seconds after which the call fails. Waiting for a process, and its start, do not count.

        Returns:
            The future of the result, which other threads complete; its exception is `CallFailed`.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._pid != os.getpid():  # a fork of the process has no threads
                self._calls, self._num_threads, self._num_open, self._pid = queue.SimpleQueue(), 0, 0, os.getpid()
            self._num_open += 1
            self._calls.put((future, argument, time_limit))
            if self._num_threads < min(self._num_processes, self._num_open):
                self._num_threads += 1
                threading.Thread(target=self._serve, name="rwkv_batch-process-pool", daemon=True).start()
        return future

    def _serve(self) -> None:
        """The loop of a thread: hands one call after the other to its process, until there is none for a while."""
        caller = self._new_caller()
        while True:
            try:
                future, argument, time_limit = self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if not self._calls.empty():
                        continue
                    self._num_threads -= 1
                break
            result, failure = None, None
            try:
                result = caller.call(argument, time_limit)
            except CallFailed as error:
                failure = error
            with self._lock:
                self._num_open -= 1
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        caller.end()


class ProcessCaller:
    """Calls a function in one other process, which starts with the first call. The caller's thread waits.

    Args:
        function, shared, memory_bytes: as in `ProcessPool`.
    """

    def __init__(self, function: str, shared: Any, memory_bytes: int) -> None:
        self._start = partial(_Worker, function, shared, memory_bytes)
        self._worker: _Worker | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def call(self, argument: Any, time_limit: float) -> Any:
        """Returns the result. Raises `CallFailed`. The arguments are those of `ProcessPool.submit`."""
        if self._pid != os.getpid():  # a fork of the process has no process of its own yet
            self._worker, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            try:
                if self._worker is None or not self._worker.begins_call(time_limit):
                    self._worker = self._start()
                    self._worker.begins_call(time_limit)
                return self._worker.call(argument)
            except CallFailed:
                raise
            except Exception as error:  # the process cannot be started: the next call tries again
                raise CallFailed(f"{type(error).__name__}: {error}") from error

    def end(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._worker is not None:
                self._worker.kill()


class _Worker:
    """One process, which answers one call at a time."""

    def __init__(self, function: str, shared: Any, memory_bytes: int) -> None:
        # A session of its own: Ctrl-C in a terminal is for the parent alone.
        self._process = subprocess.Popen(
            python_command(__name__, function, str(memory_bytes)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._end = _MovingEnd(self._process)
        try:
            self._exchange(shared)
        except CallFailed:
            self.kill()
            raise

    def begins_call(self, time_limit: float) -> bool:
        """Starts the time of a call. Returns False if the process has ended: it cannot answer."""
        self._end.is_in(time_limit)
        if self._process.poll() is not None:
            self.kill()
        return not self._end.is_past

    def call(self, argument: Any) -> Any:
        """Returns the answer. Raises CallFailed; after a late call the process has ended."""
        try:
            return self._exchange(argument)
        finally:
            self._end.is_in(IDLE_SECONDS)

    def kill(self) -> None:
        """Ends the process, and waits for its end."""
        self._end.now()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()

    def _exchange(self, message: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            _send(self._process.stdin, message)
            result, error = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            is_late = self._end.is_past
            self.kill()
            raise CallFailed(f"its process ended with code {self._process.returncode}", is_late) from None
        except BaseException:  # the answer to this message would be taken for the answer to the next one
            self.kill()
            raise
        if error is not None:
            raise CallFailed(error)
        return result


class _MovingEnd:
    """Kills a process at a time that moves with each call. To move the time costs no thread and, mostly, no switch."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.is_past = False
        self._process = process
        self._time = self._wakes = math.inf
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="rwkv_batch-process-end", daemon=True).start()

    def is_in(self, seconds: float) -> None:
        """Moves the time, unless it is past."""
        with self._changed:
            self._time = monotonic() + seconds
            if self._time < self._wakes:
                self._changed.notify()

    def now(self) -> None:
        """Kills the process."""
        with self._changed:
            self.is_past = True
            with contextlib.suppress(OSError):
                self._process.kill()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self.is_past and (seconds := self._time - monotonic()) > 0:
                self._wakes = self._time
                self._changed.wait(min(seconds, threading.TIMEOUT_MAX))
            self.now()
        self._process.wait()


def main(function: str, memory_bytes: str) -> None:
    """The program of a process: calls the function with the first message, and answers all further ones."""
    messages, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    _limit_memory(int(memory_bytes))
    module, _, name = function.partition(":")
    answer: Callable[[Any], Any] | None = None
    while True:
        try:
            message = pickle.load(messages)
        except EOFError:
            return
        result, failure = None, None
        try:
            if answer is None:
                answer = getattr(import_module(module), name)(message)
            else:
                result = answer(message)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        _send(answers, (result, failure))


def _send(pipe: Any, message: Any) -> None:
    pipe.write(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
    pipe.flush()


def end_with_parent(parent: int) -> None:
    """Ends this process soon after its parent has ended, also in the middle of a call."""
    while os.getppid() == parent:
        sleep(_PARENT_SECONDS)
    os._exit(1)


def _limit_memory(num_bytes: int) -> None:
    """Limits what this process may allocate, where the system can do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
