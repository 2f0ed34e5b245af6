"""How long a Python thread may keep the interpreter to itself while an engine runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 1e-4
"""The interpreter's switch interval while an engine runs.

The thread that launches steps releases the interpreter in every native call. Getting it back from a thread that
tokenises or writes may take a whole interval, for each launch of a kernel. Python's own interval is 5 ms.
"""


class _SwitchInterval:
    """The interval belongs to the process: the first of several engines shortens it, the last one restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_engines = 0
        self._before = self._while_running = 0.0

    @contextmanager
    def shortened(self) -> Iterator[None]:
        """At most `SECONDS` inside. An interval that somebody else sets meanwhile stays."""
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
    """The interpreter keeps whole microseconds, and cuts off what is below."""
    sys.setswitchinterval(seconds + 5e-7)


quick_thread_switches = _SwitchInterval().shortened
