"""Progress of a run: what is shown while it goes on, events for the report, metrics.prom for Prometheus."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ..output.writer import Counts
from .display import LINE_SECONDS, ProgressKind, open_display
from .events import memory
from .run_status import RATES, RunStatus, metric_values
from .time_left import TimeLeft, in_words

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
METRICS_SECONDS = 15.0


class Progress:
    """Reports a run from a background thread while its `with` block runs; ends the process if the engine hangs.

    Args:
        rows_total: rows of this process's units.
        counts: the writer's counters.
        stats: returns the engine's counters, `EngineStats`.
        log: writes an event.
        write_metrics: writes metrics.prom, given its values: the status, and "time".
        task: of the job, "generate" or "score".
        timeout: an engine that makes no step for so many seconds hangs, and this process is ended; None where engines
            are in other processes.
        kind: how progress is shown.
    """

    def __init__(
        self,
        rows_total: int,
        counts: Counts,
        stats: Callable[[], Any],
        log: Callable[..., None],
        write_metrics: Callable[[Mapping[str, float]], object],
        task: str = "generate",
        timeout: float | None = None,
        kind: ProgressKind = "auto",
    ) -> None:
        self._task = task
        self._timeout = timeout
        self._rows_total = rows_total
        self._counts = counts
        self._stats = stats
        self._log = log
        self._write_metrics = write_metrics
        self._start = time.monotonic()
        self._recent = deque([RunStatus()])
        self._time_left = TimeLeft()
        self._due = {"metrics": 0.0, "sample": 0.0}
        self._progressed_at = 0.0
        self._display = open_display(kind, rows_total)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rwkv_batch-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._log("progress", **asdict(self._take()), phases=self._phases(), unrecorded=self._unrecorded())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._due = dict.fromkeys(self._due, 0.0)
        self._report(self._take(), is_last=True)
        self._log("occupancy", occupancy=self._stats().occupancy.describe())
        self._log("memory", memory=memory())

    def values(self) -> dict[str, float]:
        """The present values of the metrics. Any thread may call."""
        return metric_values(self._recent[-1], time.time())

    def _watch(self) -> None:
        while not self._ending.wait(TICK_SECONDS):
            status = self._take()
            self._report(status)
            stalled = status.seconds - self._progressed_at
            if self._timeout is not None and stalled > self._timeout:
                self._give_up(stalled)

    def _take(self) -> RunStatus:
        """Takes the present status into the recent ones, and notes when the run last progressed."""
        status = RunStatus.of(time.monotonic() - self._start, self._counts, self._stats())
        status = replace(status, rows_total=self._rows_total)
        status = replace(status, seconds_left=self._time_left.update(status, self._counts.lengths))
        last = self._recent[-1]
        if (last.steps, last.rows_committed) != (status.steps, status.rows_committed):
            self._progressed_at = status.seconds
        self._recent.append(status)
        while status.seconds - self._recent[0].seconds > LINE_SECONDS and len(self._recent) > 2:
            self._recent.popleft()
        return status

    def _report(self, status: RunStatus, *, is_last: bool = False) -> None:
        with suppress(OSError, ValueError):  # standard error is closed, or nobody reads it: the job goes on
            self._display.show(status, describe(status, self._recent[0], self._task), is_last=is_last)
        # The period grows with the run, so that a month of samples still fits into a report.
        if self._is_due("sample", status.seconds, period=status.seconds / 300):
            self._log("progress", **asdict(status), phases=self._phases(), unrecorded=self._unrecorded())
        if self._is_due("metrics", status.seconds, METRICS_SECONDS):
            try:
                self._write_metrics(self.values())
            except OSError as error:
                logger.warning("the metrics were not written: %s", error)

    def _phases(self) -> dict[str, float]:
        """The seconds of each phase of this run so far."""
        phases = {**self._stats().seconds(), "write": self._counts.wait_seconds}
        return {name: round(seconds, 3) for name, seconds in phases.items()}

    def _unrecorded(self) -> dict[str, int]:
        """The steps of this run that were not recorded, by the reason."""
        return dict(self._stats().unrecorded_steps)

    def _is_due(self, name: str, now: float, period: float) -> bool:
        """Whether the time for a report has come. If so, the next one is due `period` seconds from now."""
        if now < self._due[name]:
            return False
        self._due[name] = now + period
        return True

    def _give_up(self, seconds: float) -> None:
        """Ends the process, as the engine has hung for so many seconds."""
        message = (
            f"the engine has made no step for {seconds:.0f} s (run.worker_timeout); committed rows are safe, start the "
            "job again"
        )
        self._log("failure", type="Stall", message=message)
        logger.error(message)
        os._exit(1)  # a thread that hangs cannot be ended otherwise


def describe(status: RunStatus, earlier: RunStatus, task: str = "generate") -> str:
    """The status in a line: errors, slots, token rates since `earlier`, time left, committed rows."""
    seconds = max(status.seconds - earlier.seconds, 1e-9)
    rates = (
        f"{kind} {(getattr(status, f'{kind}_tokens') - getattr(earlier, f'{kind}_tokens')) / seconds:,.0f} tok/s"
        for kind in RATES[task]
    )
    return (
        f"errors {status.errors:,} | slots {status.slots_in_use}/{status.slots} | {' | '.join(rates)} | "
        f"eta {in_words(status.seconds_left)} | committed {status.rows_committed:,}"
    )
