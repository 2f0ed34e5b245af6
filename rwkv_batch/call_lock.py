"""A lock that gives one call at a time the engine; calls of other threads wait for it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
import weakref
from typing import Protocol

_POLL_SECONDS = 0.5
"""How often a waiting call checks whether the thread of the lock's holder is still alive."""

LEFT_OPEN = (
    "an iterator of this LLM was left open, and is closed by a new call: the results that it had not given are lost; "
    "use up an iterator, or close it, before the next call"
)


class Call(Protocol):
    """A call that can hold the lock."""

    thread: threading.Thread
    """The thread that has last asked the call for a result."""

    @property
    def is_dropped(self) -> bool:
        """Whether nobody can ask the call for a result any more: its iterator was garbage-collected."""

    @property
    def is_busy(self) -> bool:
        """Whether a thread is inside the call at this moment."""

    def reads_input_on(self, thread: threading.Thread) -> bool:
        """Whether this thread reads the call's input. The call cannot continue while that thread waits."""

    def close(self) -> None:
        """Ends the call, and releases the lock."""


class CallLock:
    """The lock on the engine. A call holds it from `acquire` to `release`.

    A call whose iterator was garbage-collected closes itself. Where an exception has prevented that, a call that waits
    closes it.

    Attributes:
        holder: the call that holds the lock.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        # A reentrant lock (a Condition's default), because a garbage collection inside may close a call.
        self._changed = threading.Condition()
        self.holder: Call | None = None
        self._closed_because = ""
        _locks.add(self)

    def check(self) -> None:
        """Raises RuntimeError if no call can acquire the lock: in a fork of the process, and after `close`."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this LLM belongs to process {self._process}, and this is process {os.getpid()}, a fork of it without "
                "its threads; load the model in the process that uses it, and start that process by spawn"
            )
        if self._closed_because:
            raise RuntimeError(self._closed_because)

    @property
    def is_in_its_process(self) -> bool:
        """Whether this process made the lock, rather than being a fork of the process that did."""
        return os.getpid() == self._process

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return bool(self._closed_because)

    def acquire(self, call: Call) -> None:
        """Waits until the lock is free, and gives it to this call.

        A holder that was dropped is closed. A holder that the same thread has left open, or whose thread has ended, is
        closed with a warning.

        Raises:
            RuntimeError: see `check`; or the holder cannot end before this call does.
        """
        self.check()
        while not self._try(call):
            holder = self.holder
            if holder is None:
                continue
            if holder.reads_input_on(call.thread) or (holder.thread is call.thread and holder.is_busy):
                raise RuntimeError("this LLM is serving a call that waits for this one; use another LLM, or call later")
            if holder.is_dropped:
                self._close(holder)
            elif holder.thread is call.thread or not (holder.thread.is_alive() or holder.is_busy):
                warnings.warn(LEFT_OPEN, RuntimeWarning, stacklevel=_frames_of_this_package())
                self._close(holder)
            with self._changed:
                if self.holder is not None:
                    self._changed.wait(_POLL_SECONDS)

    def release(self, call: Call) -> None:
        """Releases the lock if this call holds it."""
        with self._changed:
            if self.holder is call:
                self.holder = None
                self._changed.notify_all()

    def close(self, call: Call, reason: str) -> None:
        """Waits for the lock, and refuses all later calls. `reason` is the message of their error."""
        self.acquire(call)
        self._closed_because = reason
        self.release(call)

    def _close(self, holder: Call) -> None:
        """Closes a call that was left open, unless another thread has just continued or closed it."""
        try:
            holder.close()
        except ValueError:  # its generator is running
            return

    def _try(self, call: Call) -> bool:
        """Gives the lock to this call if it is free. Returns whether the call holds it."""
        with self._changed:
            self.check()
            if self.holder is None:
                self.holder = call
            return self.holder is call


_locks: weakref.WeakSet[CallLock] = weakref.WeakSet()
"""The locks of this process."""


@atexit.register
def _close_open_calls() -> None:
    """Closes calls that were left open, while the modules that a call needs at its end are still there."""
    for lock in list(_locks):
        if (holder := lock.holder) is not None and not holder.is_busy:
            holder.close()


def _frames_of_this_package() -> int:
    """The `stacklevel` that makes a warning point to the caller of this package: its functions on top of the stack."""
    package = __name__.partition(".")[0]
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, count = frame.f_back, count + 1
    return count
