"""The iterator of a call's finished rows, and the call that it runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from .call_lock import CallLock


class CallRows(Protocol):
    """The rows of one call."""

    def serve(self) -> Generator[list[Any], None, None]:
        """Yields lists of finished rows."""

    def abort(self, key: Hashable) -> None:
        """Aborts the row with this key, now or when it is read. Any thread may call."""

    def cancel(self) -> None:
        """Ends `serve` at the next step. Any thread may call."""

    def reads_input_on(self, thread: threading.Thread) -> bool:
        """Whether this thread reads the rows."""


class ServingCall(Iterator[list[Any]]):
    """An iterator of lists of finished rows, which are `Finished` where one engine serves.

    The call holds the lock from the first list to its end, or until it is closed. A garbage collection closes it.

    Args:
        start: makes the call's rows; called when the first list is asked for.
    """

    def __init__(self, lock: CallLock, start: Callable[[], CallRows]) -> None:
        self._call = RunningCall(lock, start, weakref.ref(self))

    def __next__(self) -> list[Any]:
        return self._call.next_list()

    def __del__(self) -> None:
        with suppress(ValueError):  # a waiting call closes this one at the same moment
            self._call.close()

    def cancel(self) -> None:
        """Ends the call at the next step, and drops the rows that are not finished. Any thread may call.

        A call that has not begun is not changed.
        """
        self._call.cancel()

    def close(self) -> None:
        """Ends the call, and drops the rows that are not finished. In a fork of the process this does nothing."""
        self._call.close()


class RunningCall:
    """What a `ServingCall` does, and the holder of the lock.

    It is an object of its own because a garbage collection clears the weak references to an iterator before it closes
    the iterator. The lock has to be held until the iterator is closed.

    Attributes:
        thread: the thread that has asked for the last list.
        is_busy: a thread is inside `next_list` at this moment.
    """

    def __init__(
        self, lock: CallLock, start: Callable[[], CallRows] | None, iterator: weakref.ref[ServingCall] | None = None
    ) -> None:
        self.thread = threading.current_thread()
        self.is_busy = False
        self._lock = lock
        self._start = start
        self._iterator = iterator
        self._rows: CallRows | None = None
        self._lists: Generator[list[Any], None, None] | None = None

    @property
    def is_dropped(self) -> bool:
        """Whether the iterator of this call was garbage-collected."""
        return self._iterator is not None and self._iterator() is None

    def next_list(self) -> list[Any]:
        """The next list of finished rows.

        Raises:
            StopIteration: there is none.
        """
        self.thread = threading.current_thread()
        try:
            if self._lists is None:
                if self._start is None:
                    raise StopIteration
                self._lock.check()
                self._rows = rows = self._start()  # before `acquire`: `abort` looks for the rows of the lock's holder
                self._lock.acquire(self)
                self._lists = rows.serve()
            self._lock.check()
            self.is_busy = True
            return next(self._lists)
        except BaseException:
            self.close()
            raise
        finally:
            self.is_busy = False

    def reads_input_on(self, thread: threading.Thread) -> bool:
        """See `Call`."""
        rows = self._rows
        return rows is not None and rows.reads_input_on(thread)

    def abort(self, key: Hashable) -> None:
        """Ends the row with this key; see `AnyServing.abort`."""
        if (rows := self._rows) is not None:
            rows.abort(key)

    def cancel(self) -> None:
        """See `ServingCall.cancel`."""
        if (rows := self._rows) is not None:
            rows.cancel()

    def close(self) -> None:
        """See `ServingCall.close`."""
        if self._lock.is_in_its_process:
            if self._lists is not None:
                self._lists.close()
            self._lock.release(self)
            self._rows = None
        self._start = None
