"""A process that exchanges messages with the process that has started it."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from .process import python_command
from .process_pool import end_with_parent

END_SECONDS = 5.0
"""How long to wait for a killed process. A process that waits for a broken driver never ends."""


class MessageProcess:
    """Starts a process. Two threads send and receive, so that no call of this class but `kill` waits.

    A message is any object that can be pickled.

    Args:
        module: the module whose `main(parent)` is the program of the process; it begins with `ParentPipes`.
        first: the first message to it.
        on_message: called with each message of the process, on a thread of this class.
        on_end: called once, with words that say how the process ended: when it has ended and all of its messages have
            been handled, or when it has not ended in END_SECONDS after it was killed.

    Raises:
        Exception: the first message cannot be pickled; no process was started.
    """

    def __init__(
        self, module: str, first: Any, on_message: Callable[[Any], None], on_end: Callable[[str], None]
    ) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._end_lock = threading.Lock()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.send(first)
        # A session of its own: Ctrl-C in a terminal is for the parent alone.
        self._process = subprocess.Popen(
            python_command(module, str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for loop in (self._send_all, self._receive_all):
            threading.Thread(target=loop, name="rwkv_batch-messages", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number in the system."""
        return self._process.pid

    def send(self, message: Any) -> None:
        """Sends a message. Any thread may call.

        Raises:
            Exception: the message cannot be pickled; nothing was sent.
        """
        self._outbox.put(pickled(message))

    def kill(self) -> None:
        """Ends the process, and waits for its end, at most END_SECONDS."""
        self.send_kill()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._end("it was killed, and does not end")

    def send_kill(self) -> None:
        """Like `kill`, but without waiting. Several processes can be killed before the first is waited for."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._outbox.put(None)

    def _send_all(self) -> None:
        """The loop of a thread."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the process has ended: `_receive_all` says so
            for data in iter(self._outbox.get, None):
                self._process.stdin.write(data)
                self._process.stdin.flush()

    def _receive_all(self) -> None:
        """The loop of a thread."""
        assert self._process.stdout is not None
        reason = ""
        try:
            while True:
                self._on_message(pickle.load(self._process.stdout))
        except (EOFError, pickle.UnpicklingError):  # the process has ended, perhaps in the middle of a message
            pass
        except Exception as error:
            reason = f"a message of it cannot be read: {type(error).__name__}: {error}"
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()
        self._end(reason or _in_words(self._process.returncode))

    def _end(self, how: str) -> None:
        """Calls `on_end`, the first time."""
        if self._end_lock.acquire(blocking=False):
            self._on_end(how)


class ParentPipes:
    """The other end, in the process that `MessageProcess` has started. That process ends when its parent ends.

    Messages come on standard input, and go to what was standard output. What a library prints goes to standard error.

    Args:
        parent: the argument of the program's `main`: the number of the parent in the system.
    """

    def __init__(self, parent: str) -> None:
        self._messages: IO[bytes] = sys.stdin.buffer
        self._answers = os.fdopen(os.dup(1), "wb")
        self._lock = threading.Lock()
        try:
            os.dup2(2, 1)
        except OSError:  # standard error is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        threading.Thread(target=end_with_parent, args=(int(parent),), daemon=True).start()

    def receive(self) -> Any:
        """Waits for the next message. Raises EOFError when the parent has closed its end."""
        return pickle.load(self._messages)

    def send(self, message: Any) -> None:
        """Sends a message; it is in the pipe when this returns. Any thread may call."""
        data = pickled(message)
        with self._lock:
            self._answers.write(data)
            self._answers.flush()


def pickled(message: Any) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def sendable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its words where it cannot be pickled."""
    try:
        pickle.loads(pickled(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _in_words(code: int | None) -> str:
    if code is None:
        return "its pipes closed, and did not end"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
