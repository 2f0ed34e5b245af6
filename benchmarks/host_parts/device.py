"""A device that costs the host nothing: the results of a step are there a given time after it was launched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


class SimulatedDevice:
    """Runs one step at a time, in the order of their launches.

    A step starts when it is launched or when the step before it has ended, whichever is later.

    Args:
        step_seconds: what a step takes; 0 makes results ready at once.
        now, sleep: the clock in seconds, and what waits on it.

    Attributes:
        on_launch: called at every launch.
        ready_at: when the results of the step that was launched last are ready.
    """

    def __init__(
        self,
        step_seconds: float,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.step_seconds = step_seconds
        self._now, self._sleep = now, sleep
        self.on_launch: Callable[[], object] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self.num_steps = 0
        self.first_launch: float | None = None
        self.last_result = 0.0
        self.ready_at = 0.0

    def launch(self) -> None:
        """A step is put into the device's queue."""
        now = self._now()
        if self.first_launch is None:
            self.first_launch = self.last_result = now
        self.ready_at = max(now, self.ready_at) + self.step_seconds
        self.num_steps += 1
        self.on_launch()

    def wait(self, ready_at: float) -> None:
        """Return when the device's clock has come to `ready_at`, a former value of that attribute."""
        while (left := ready_at - self._now()) > 0:
            self._sleep(left)
        self.last_result = self._now()

    @property
    def wall_seconds(self) -> float:
        """From the first launch to the last result that was read."""
        return 0.0 if self.first_launch is None else self.last_result - self.first_launch

    @property
    def used_share(self) -> float | None:
        """Seconds in which a step ran ÷ `wall_seconds`; None for a device that takes no time."""
        busy = self.num_steps * self.step_seconds
        return busy / self.wall_seconds if busy and self.wall_seconds else None

    @contextmanager
    def delays(self, copy_class: Any) -> Iterator[None]:
        """What `copy_class` copies to the host is there when the step launched before the copy has ended.

        Args:
            copy_class: a copy starts when an object is made; its method `read` waits for it.
        """
        make, read = copy_class.__init__, copy_class.read

        def make_late(copy: Any, *args: Any, **kwargs: Any) -> None:
            make(copy, *args, **kwargs)
            copy.ready_at = self.ready_at

        def read_late(copy: Any) -> Any:
            self.wait(copy.ready_at)
            return read(copy)

        with patch.object(copy_class, "__init__", make_late), patch.object(copy_class, "read", read_late):
            yield
