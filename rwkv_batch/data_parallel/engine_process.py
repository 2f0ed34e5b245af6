"""A process with one engine, as its parent sees it."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from ..message_process import MessageProcess
from ..sampling_params import SamplingParams
from .messages import Answer, Ask, Crashed, Ended, Ready, Row, Rows, Start, packed_rows
from .worker import main

Events = queue.SimpleQueue[tuple["EngineProcess | None", Any]]


class EngineProcess:
    """Starts a process that loads a model. No call of this class but `kill` waits for the process.

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
        self._process = MessageProcess(main.__module__, start, self._receive, self._end)

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
        self._process.send(message)

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
        """Ends the process, and waits for its end for a few seconds at most."""
        self._process.kill()

    def send_kill(self) -> None:
        """Like `kill`, but without waiting."""
        self._process.send_kill()

    def _receive(self, message: Any) -> None:
        """Handles a message. This runs on a thread of the process's object."""
        if isinstance(message, Answer):
            self._answers.pop(message.number).set_result(message)
        elif isinstance(message, Crashed):
            self._reason = message.reason
        else:
            if isinstance(message, Ready):
                self.ready = message
            self._events.put((self, message))

    def _end(self, ended_with: str) -> None:
        """Handles the end of the process."""
        self.ended_with = self._reason or ended_with
        self._give_up_answers()
        self._events.put((self, Ended()))

    def _give_up_answers(self) -> None:
        while self._answers:
            with contextlib.suppress(KeyError):
                self._answers.popitem()[1].set_result(None)
