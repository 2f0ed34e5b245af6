"""A simulated device that costs the host nothing: results are ready a given time after the start of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


class SimulatedDevice:
    """A device that runs one step at a time, in the order of launches.

    A step starts when it is launched or when the step before it has ended, whichever is later.

    Args:
        step_seconds: time of a step; 0 makes results ready at once.
        now, sleep: the clock, in seconds, and the function that waits on it.

    Attributes:
        on_launch: a function called at every launch.
        ready_at: the time at which the results of the last launched step are ready.
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
        """Forgets all steps."""
        self.num_steps = 0
        self.first_launch: float | None = None
        self.last_result = 0.0
        self.ready_at = 0.0

    def launch(self) -> None:
        """Enqueues a step."""
        now = self._now()
        if self.first_launch is None:
            self.first_launch = self.last_result = now
        self.ready_at = max(now, self.ready_at) + self.step_seconds
        self.num_steps += 1
        self.on_launch()

    def wait(self, ready_at: float) -> None:
        """Waits until the device's clock reaches `ready_at`, an earlier value of the attribute."""
        while (left := ready_at - self._now()) > 0:
            self._sleep(left)
        self.last_result = self._now()

    @property
    def wall_seconds(self) -> float:
        """Seconds from the first launch to the last result that was read."""
        return 0.0 if self.first_launch is None else self.last_result - self.first_launch

    @property
    def used_share(self) -> float | None:
        """Seconds in which a step ran ÷ `wall_seconds`; None for steps of no time."""
        busy = self.num_steps * self.step_seconds
        return busy / self.wall_seconds if busy and self.wall_seconds else None

    @contextmanager
    def delays(self, copy_class: Any) -> Iterator[None]:
        """Delays copies to the host until the step that was launched before the copy has ended.

        Args:
            copy_class: the class of such copies. A new object starts a copy; its method `read` waits for the copy.
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
