"""One call at a time has the engine; calls of other threads wait for their turn."""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from typing import Protocol

_LOOK_SECONDS = 0.5
"""How often a call that waits looks whether the thread that it waits for is still alive."""


LEFT_OPEN = (
    "an iterator of this LLM was left open, and is closed by a new call: the results that it had not given are lost; "
    "use up an iterator, or close it, before the next call"
)


class Call(Protocol):
    """Whatever has a turn until it is closed."""

    thread: threading.Thread
    """The thread that last asked for a result."""

    @property
    def is_busy(self) -> bool:
        """It is making a result at this moment."""

    def is_made_by(self, thread: threading.Thread) -> bool:
        """The thread makes what the call reads, so the call cannot go on while the thread waits."""

    def close(self) -> None:
        """End the call, and give its turn back."""


class Turns:
    """Who has the engine.

    A call has its turn from `take` to `give_back`. It is referred to weakly: a call that nobody refers to any more has
    no turn either, whatever has interrupted it.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        # Its lock is reentrant: a garbage collection inside may close a call.
        self._changed = threading.Condition()
        self._holder: weakref.ref[Call] | None = None
        self._reason = ""

    def check(self) -> None:
        """Raise RuntimeError where no call can have a turn: after a fork, and after `end`."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this LLM belongs to process {self._process}, and this is process {os.getpid()}, a fork of it without "
                "its threads; load the model in the process that uses it, and start that process by spawn"
            )
        if self._reason:
            raise RuntimeError(self._reason)

    @property
    def is_here(self) -> bool:
        """This process is the one that made the turns, and not a fork of it."""
        return os.getpid() == self._process

    @property
    def are_over(self) -> bool:
        """`end` has been called."""
        return bool(self._reason)

    @property
    def holder(self) -> Call | None:
        """The call that has its turn."""
        return self._holder() if self._holder is not None else None

    def take(self, call: Call) -> None:
        """Wait until the engine is free, and have it.

        A call that the same thread has left open, or that a thread has left open which has ended, is closed with a
        warning.

        Raises:
            RuntimeError: see `check`; or the call that has the engine cannot end before this one.
        """
        self.check()
        while not self._try(call):
            holder = self.holder
            if holder is None:
                continue
            if holder.is_made_by(call.thread) or (holder.thread is call.thread and holder.is_busy):
                raise RuntimeError("this LLM is serving a call that waits for this one; use another LLM, or call later")
            if holder.thread is call.thread or not (holder.thread.is_alive() or holder.is_busy):
                warnings.warn(LEFT_OPEN, RuntimeWarning, stacklevel=_frames_of_this_package())
                self._close(holder)
            del holder  # a reference from here would keep a call alive that nobody else wants
            with self._changed:
                if self.holder is not None:
                    self._changed.wait(_LOOK_SECONDS)

    def give_back(self, call: Call) -> None:
        """The call needs its turn no longer; does nothing where it has none."""
        with self._changed:
            if self._holder is not None and self._holder() in (call, None):
                self._holder = None
                self._changed.notify_all()

    def end(self, call: Call, reason: str) -> None:
        """No more turns. `reason` is what calls from now on are told."""
        self.take(call)
        self._reason = reason
        self.give_back(call)

    def _close(self, holder: Call) -> None:
        """Close a call that was left open, unless another thread has just gone on with it or is closing it."""
        try:
            holder.close()
        except ValueError:  # its generator is running
            return

    def _try(self, call: Call) -> bool:
        with self._changed:
            self.check()
            if self.holder is None:
                self._holder = weakref.ref(call)
            return self.holder is call


def _frames_of_this_package() -> int:
    """How many callers, from the calling function on, are functions of this package: what a warning passes over."""
    package = __name__.partition(".")[0]
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, count = frame.f_back, count + 1
    return count
