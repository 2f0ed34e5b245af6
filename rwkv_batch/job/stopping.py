"""Signals that ask a process to end: the first one stops the run where that is safe, a second one ends the process.

Another thread may ask for the same without a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..errors import Stopped

EXIT_KILLED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGINT is handled first and restored last, because it raises KeyboardInterrupt wherever it is not handled."""


class StopSignals:
    """Handles the signals while its `with` block runs. Outside of the main thread it handles none.

    Args:
        is_command: the process runs this job and nothing else: all signals are handled, and a second one ends the
            process. Otherwise a program has called `run_job`: signals that the program handles or ignores are left
            alone, and a second signal has the effect that it had before.

    Attributes:
        requested: why the run is to end, in words, such as "SIGTERM"; None while it is not.
    """

    def __init__(self, is_command: bool = False) -> None:
        self.requested: str | None = None
        self._is_signalled = False
        self._is_command = is_command
        self._is_interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS if self._is_heeded(number)}
            try:
                for number in self._previous:
                    signal.signal(number, self._handle)
            except BaseException:
                self._restore()
                raise
            if self.requested and not self._is_command:  # a signal came while handlers were installed
                self._restore()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if self._is_signalled and kind is None and not self._is_command:
            raise self._stopped()  # a signal came after the last safe point: tell the program

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal ends at once by raising `Stopped`. A signal outside waits until the next such block."""
        self._is_interruptible = True
        try:
            self.check()
            yield
        finally:
            self._is_interruptible = False

    def request(self, reason: str) -> None:
        """Asks the run to end, as a signal does. Any thread may call; the run ends at its next `check`.

        Args:
            reason: why, in words. An earlier reason stays.
        """
        self.requested = self.requested or reason

    def check(self) -> None:
        """Raises `Stopped` if a signal or a thread has asked for it."""
        if self.requested:
            raise self._stopped()

    def _is_heeded(self, number: signal.Signals) -> bool:
        handler = signal.getsignal(number)
        if self._is_command:  # nohup makes SIGHUP ignored: leave it so
            return number != signal.SIGHUP or handler != signal.SIG_IGN
        return handler in (signal.SIG_DFL, signal.default_int_handler)

    def _restore(self) -> None:
        for number, handler in reversed(self._previous.items()):
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._is_signalled:
            os._exit(EXIT_KILLED)
        self._is_signalled = True
        name = signal.Signals(number).name
        self.request(name)
        second = "ends the process at once" if self._is_command else "does not wait for that"
        if sys.stderr is not None:  # where it is closed, a file of the job may have its number
            with suppress(OSError):
                os.write(2, f"\n{name}: committing finished rows; a second signal {second}\n".encode())
        if not self._is_command:
            self._restore()
        if self._is_interruptible:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(f"{self.requested}: what was finished is committed; start the job again to go on")
