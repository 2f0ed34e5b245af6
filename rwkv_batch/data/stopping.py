"""What the signals do that ask a process to end: the first stops the run where that is safe, the second ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_KILLED = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the run to end. No `Exception`, so that nothing on the way mistakes it for a failure."""


class StopSignals:
    """Handles the signals while its `with` block runs; from the main thread only."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._is_interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Under nohup a hang-up is ignored, and stays so.
        heeded = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal leaves at once by raising `Stopped`. Elsewhere the signal waits for the next one."""
        self._is_interruptible = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._is_interruptible = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(EXIT_KILLED)
        self.requested = signal.Signals(number)
        message = f"\n{self.requested.name}: committing finished rows; a second signal ends the process at once\n"
        os.write(2, message.encode())
        if self._is_interruptible:
            raise Stopped
