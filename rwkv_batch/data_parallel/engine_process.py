"""A process with one engine, as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from ..process import python_command
from ..sampling_params import SamplingParams
from .messages import Answer, Ask, Crashed, Ended, Ready, Row, Rows, Start, packed_rows, pickled
from .worker import main

END_SECONDS = 5.0
"""How long to wait for a killed process. A process that waits for a broken driver never ends."""

Events = queue.SimpleQueue[tuple["EngineProcess | None", Any]]


class EngineProcess:
    """Starts a process that loads a model. Two threads send and receive, so that no call of this class waits.

    Args:
        index: number of the engine; on GPUs, of the GPU.
        start: what to load.
        events: gets (this process, message) for each message but answers, and `Ended` at the end.

    Attributes:
        ready: what the process has said of its model; None until it is loaded.
        in_flight: (row, weight) of the rows that the process serves, by number, in the order in which they were sent.
        load: the weight of all of them.
        ended_with: how the process ended, in words; "" while it runs.
    """

    def __init__(self, index: int, start: Start, events: Events) -> None:
        self.index = index
        self.ready: Ready | None = None
        self.in_flight: dict[int, tuple[Row, int]] = {}
        self.load = 0
        self.ended_with = ""
        self._events = events
        self._last: SamplingParams | None = None
        self._questions = count()
        self._answers: dict[int, Future[Answer | None]] = {}
        self._reason = ""
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox.put(pickled(start))
        # A session of its own: Ctrl-C in a terminal is for the parent alone.
        self._process = subprocess.Popen(
            python_command(main.__module__, str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for loop in (self._send_all, self._receive_all):
            threading.Thread(target=loop, name="rwkv_batch-engine", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number in the system."""
        return self._process.pid

    @property
    def room(self) -> int:
        """The weight of the rows that the process may be sent: it holds as many as fill its slots twice."""
        return 2 * self.ready.max_batch_size - self.load if self.ready is not None and not self.ended_with else 0

    def send(self, message: Any) -> None:
        """Sends a message. Any thread may call."""
        self._outbox.put(pickled(message))

    def send_rows(self, call: int, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Sends rows of one kind.

        Raises:
            Exception: a row cannot be pickled; nothing was sent.
        """
        packed, last = packed_rows(numbers, rows, self._last)
        self.send(Rows(call, type(rows[0]), packed))
        self._last = last

    def ask(self, question: str) -> Future[Answer | None]:
        """Asks the process. The future gives None if the process ends before it answers."""
        number, future = next(self._questions), Future[Answer | None]()
        self._answers[number] = future
        self.send(Ask(number, question))
        if self.ended_with:
            self._give_up_answers()
        return future

    def kill(self) -> None:
        """Ends the process, and waits for its end, at most END_SECONDS."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._outbox.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

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
        with contextlib.suppress(Exception):  # the process has ended, perhaps in the middle of a message
            while True:
                message = pickle.load(self._process.stdout)
                if isinstance(message, Answer):
                    self._answers.pop(message.number).set_result(message)
                elif isinstance(message, Crashed):
                    self._reason = message.reason
                else:
                    if isinstance(message, Ready):
                        self.ready = message
                    self._events.put((self, message))
        self.kill()
        self.ended_with = self._reason or _in_words(self._process.returncode)
        self._give_up_answers()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()
        self._events.put((self, Ended()))

    def _give_up_answers(self) -> None:
        while self._answers:
            with contextlib.suppress(KeyError):
                self._answers.popitem()[1].set_result(None)


def _in_words(code: int | None) -> str:
    if code is None:
        return "its pipes closed, and did not end"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
