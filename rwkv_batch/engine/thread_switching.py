"""A shorter switch interval of the Python interpreter while an engine runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1e-4
"""The interpreter's switch interval while an engine runs.

The thread that launches steps releases the interpreter's lock in every native call, such as a kernel launch. A thread
that tokenizes or writes may then keep the lock for a whole interval, and Python's default interval is 5 ms.
"""


class _SwitchInterval:
    """The process's switch interval. The first of several running engines shortens it; the last one restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_engines = 0
        self._before = self._while_running = 0.0

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """Limits the interval to `SECONDS` inside the block. An interval that other code sets meanwhile stays."""
        with self._lock:
            if not self._num_engines:
                self._before = sys.getswitchinterval()
                _set(min(self._before, SECONDS))
                self._while_running = sys.getswitchinterval()
            self._num_engines += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_engines -= 1
                if not self._num_engines and sys.getswitchinterval() == self._while_running:
                    _set(self._before)


def _set(seconds: float) -> None:
    """Sets the interval, rounded to whole microseconds: the interpreter itself would round down."""
    sys.setswitchinterval(seconds + 5e-7)


quick_thread_switches = _SwitchInterval().shortened
