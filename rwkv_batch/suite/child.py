"""The process that evaluates, as the suite sees it. It is started for the first question, and again where it has ended.

The harness is loaded in that process once, and serves one checkpoint after the other.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from typing import Any

from ..message_process import MessageProcess
from .messages import Answer, Check, Ended, Evaluate, Failed, Interrupted, Start

PROGRAM = "rwkv_batch.suite.worker"
STOP_SECONDS = 120.0
"""How long a task may take to keep what it has, after it was asked to end."""


class Child:
    """A process that answers questions.

    Args:
        start: its first message.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self._process: MessageProcess | None = None
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(self, question: Check | Evaluate) -> Answer:
        """Asks, and waits for the answer. Raises whatever a handler of signals raises meanwhile."""
        if self._process is None:
            self._messages = queue.SimpleQueue()
            self._process = MessageProcess(PROGRAM, self._start, self._messages.put, self._put_end(self._messages))
        self._process.send(question)
        return self._answer(None)

    def interrupt(self) -> Answer:
        """Asks the process to keep what it has and to end. To be called after a signal has ended `ask`.

        Returns:
            The answer to the question, where there was one in time.
        """
        if self._process is None:
            return Interrupted()
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            answer = self._answer(STOP_SECONDS)
        except queue.Empty:
            answer = Interrupted()
        self.close()
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _answer(self, timeout: float | None) -> Answer:
        answer: Answer = self._messages.get(timeout=timeout)
        if isinstance(answer, Ended):
            self._process = None
        elif isinstance(answer, Interrupted) or (isinstance(answer, Failed) and answer.ends):
            self.close()
        return answer

    @staticmethod
    def _put_end(messages: queue.SimpleQueue[Any]) -> Any:
        return lambda how: messages.put(Ended(how))
