"""Workers on the coordinator's machine: a process for each."""

from __future__ import annotations

import queue
import socket
from collections.abc import Sequence
from typing import Any

from ...message_process import MessageProcess
from .interface import Events, Worker
from .messages import Crashed, Ended, Message, Placed, Start

PROGRAM = "rwkv_batch.job.workers.local_worker"
"""The module whose `main` is the program of a worker's process."""


class LocalWorkers:
    """Workers that are processes on this machine.

    Args:
        starts: what each worker serves, by its number.
    """

    def __init__(self, starts: Sequence[Start]) -> None:
        self.events: Events = queue.SimpleQueue()
        self.count = len(starts)
        self._starts = starts
        self._running: dict[int, LocalWorker] = {}

    def start(self, index: int) -> Worker:
        """Starts the process of the worker with this number."""
        self._running[index] = worker = LocalWorker(self._starts[index], self.events)
        return worker

    def close(self) -> None:
        """Ends all processes, and waits for their end."""
        for worker in self._running.values():
            worker.send_kill()
        for worker in self._running.values():
            worker.kill()


class LocalWorker:
    """A worker in a process of its own."""

    def __init__(self, start: Start, events: Events) -> None:
        self.index = start.number
        self._events = events
        self._reason = ""
        self._process = MessageProcess(PROGRAM, start, self._receive, self._end)
        events.put((self, Placed(socket.gethostname(), self._process.pid)))

    def send(self, message: Any) -> None:
        """Sends a message."""
        self._process.send(message)

    def kill(self) -> None:
        """Ends the process, and waits for its end for a few seconds at most."""
        self._process.kill()

    def send_kill(self) -> None:
        """Like `kill`, but without waiting."""
        self._process.send_kill()

    def _receive(self, message: Message) -> None:
        """Handles a message. This runs on a thread of the process's object."""
        if isinstance(message, Crashed):
            self._reason = message.reason
        else:
            self._events.put((self, message))

    def _end(self, ended_with: str) -> None:
        """Handles the end of the process."""
        self._events.put((self, Ended(self._reason or ended_with)))
