"""What a coordinator needs of its workers, wherever they run."""

from __future__ import annotations

import queue
from typing import Any, Protocol

from .messages import Message


class Worker(Protocol):
    """A worker, as its coordinator sees it."""

    index: int

    def send(self, message: Any) -> None:
        """Sends an `Assignment`, `Close` or `Stop`. Does not wait, and does not fail if the worker has ended."""

    def kill(self) -> None:
        """Ends the worker at once; its `Ended` is an event."""


Events = queue.SimpleQueue[tuple[Worker, Message]]


class Workers(Protocol):
    """Starts the workers of a job, and receives their messages.

    Attributes:
        events: gets (worker, message) of all workers. The last one of each is `Ended`.
        count: the number of workers that the job may have at a time; their numbers are below it.
    """

    events: Events
    count: int

    def start(self, index: int) -> Worker:
        """Starts the worker with this number. It may begin to run later."""

    def close(self) -> None:
        """Ends all workers at once."""
