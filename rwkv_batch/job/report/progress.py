"""How far the run is: a bar or a line for people, events for the report, metrics.prom for Prometheus."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..output.writer import Counts
from ..plan import Shard

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
LINE_SECONDS = 30.0
METRICS_SECONDS = 15.0
STALL_SECONDS = 1800.0
"""An engine that makes no step for so long has failed without saying so."""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment; steps and tokens are this process's since it started."""

    seconds: float = 0.0
    rows_total: int = 0
    rows_resumed: int = 0
    rows_done: int = 0
    rows_committed: int = 0
    errors: int = 0
    slots_in_use: int = 0
    slots: int = 0
    occupancy: float = 0.0
    """Mean share of the slots that were in use."""
    steps: int = 0
    step_tokens: int = 0
    """Tokens of all steps, each of which may have `max_batch_tokens`."""
    max_batch_tokens: int = 0
    requested_tokens: int = 0
    """Prompt tokens, as if no prefix were shared."""
    prompt_tokens: int = 0
    """Prompt tokens computed."""
    saved_seconds: float = 0.0
    completion_tokens: int = 0


class Progress:
    """Watches a run from a thread of its own while its `with` block runs.

    Args:
        rows_total: rows of this process's units.
        counts: kept up to date by the writer.
        stats: the engine's counters, `EngineStats`.
        log: takes events.
        write_metrics: takes the text of metrics.prom.
        shard: labels the metrics.
    """

    def __init__(
        self,
        rows_total: int,
        counts: Counts,
        stats: Callable[[], Any],
        log: Callable[..., None],
        write_metrics: Callable[[bytes], object],
        shard: Shard,
    ) -> None:
        self._rows_total = rows_total
        self._counts = counts
        self._stats = stats
        self._log = log
        self._write_metrics = write_metrics
        self._shard = shard
        self._start = time.monotonic()
        self._recent = deque([RunStatus()])
        self._due = {"line": LINE_SECONDS, "metrics": 0.0, "sample": 0.0}
        self._progressed_at = 0.0
        self._bar = _open_bar(rows_total) if sys.stderr.isatty() else None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rwkv_batch-progress", daemon=True)

    def __enter__(self) -> Progress:
        self._log("progress", **asdict(self._take()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._due = dict.fromkeys(self._due, 0.0)
        self._show(self._take())
        self._log("occupancy", occupancy=self._stats().occupancy.describe())
        if self._bar is not None:
            self._bar.close()

    def _watch(self) -> None:
        while not self._ending.wait(TICK_SECONDS):
            snapshot = self._take()
            self._show(snapshot)
            if snapshot.seconds - self._progressed_at > STALL_SECONDS:
                self._give_up(snapshot.seconds - self._progressed_at)

    def _take(self) -> RunStatus:
        stats = self._stats()
        snapshot = RunStatus(
            seconds=time.monotonic() - self._start,
            rows_total=self._rows_total,
            rows_resumed=self._counts.resumed,
            rows_done=self._counts.done,
            rows_committed=self._counts.committed,
            errors=self._counts.errors,
            slots_in_use=stats.running,
            slots=stats.max_batch_size,
            occupancy=stats.occupancy.mean,
            steps=stats.steps,
            step_tokens=stats.step_tokens,
            max_batch_tokens=stats.max_batch_tokens,
            requested_tokens=stats.requested_tokens,
            prompt_tokens=stats.prompt_tokens,
            saved_seconds=stats.saved_seconds,
            completion_tokens=stats.completion_tokens,
        )
        last = self._recent[-1]
        if (last.steps, last.rows_committed) != (snapshot.steps, snapshot.rows_committed):
            self._progressed_at = snapshot.seconds
        self._recent.append(snapshot)
        while snapshot.seconds - self._recent[0].seconds > LINE_SECONDS and len(self._recent) > 2:
            self._recent.popleft()
        return snapshot

    def _show(self, snapshot: RunStatus) -> None:
        text = describe(snapshot, self._recent[0])
        if self._bar is not None:
            self._bar.n = snapshot.rows_done
            self._bar.set_postfix_str(text)
        elif snapshot.seconds >= self._due["line"]:
            self._due["line"] = snapshot.seconds + LINE_SECONDS
            share = snapshot.rows_done / max(1, snapshot.rows_total)
            rows = f"rows {snapshot.rows_done:,}/{snapshot.rows_total:,} ({share:.1%})"
            print(time.strftime("%H:%M:%S"), rows, "|", text, file=sys.stderr, flush=True)
        if snapshot.seconds >= self._due["sample"]:
            # Every tick at first, then ever more rarely: a month of samples still fits a report.
            self._due["sample"] = snapshot.seconds * (1 + 1 / 300)
            self._log("progress", **asdict(snapshot))
        if snapshot.seconds >= self._due["metrics"]:
            self._due["metrics"] = snapshot.seconds + METRICS_SECONDS
            try:
                self._write_metrics(prometheus(snapshot, self._shard))
            except OSError as error:
                logger.warning("the metrics were not written: %s", error)

    def _give_up(self, seconds: float) -> None:
        message = f"the engine has made no step for {seconds:.0f} s; committed rows are safe, start the job again"
        self._log("failure", type="Stall", message=message)
        logger.error(message)
        os._exit(1)  # the thread that hangs cannot be asked to end


def describe(snapshot: RunStatus, earlier: RunStatus) -> str:
    """Errors, slots, token rates since `earlier`, time to go, and rows that no crash can lose."""
    seconds = max(snapshot.seconds - earlier.seconds, 1e-9)
    prompt = (snapshot.prompt_tokens - earlier.prompt_tokens) / seconds
    completion = (snapshot.completion_tokens - earlier.completion_tokens) / seconds
    return (
        f"errors {snapshot.errors:,} | slots {snapshot.slots_in_use}/{snapshot.slots} | prompt {prompt:,.0f} tok/s | "
        f"completion {completion:,.0f} tok/s | eta {_eta(snapshot)} | committed {snapshot.rows_committed:,}"
    )


def prometheus(snapshot: RunStatus, shard: Shard) -> bytes:
    """The snapshot in Prometheus' text format: one gauge for each of its fields."""
    lines = []
    for name, value in asdict(snapshot).items():
        lines += [f"# TYPE rwkv_batch_{name} gauge", f'rwkv_batch_{name}{{shard="{shard}"}} {value!r}']
    return ("\n".join(lines) + "\n").encode()


def _eta(snapshot: RunStatus) -> str:
    made = snapshot.rows_done - snapshot.rows_resumed
    if not made:
        return "?"
    seconds = int((snapshot.rows_total - snapshot.rows_done) * snapshot.seconds / made)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def _open_bar(rows_total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=rows_total, unit="row", dynamic_ncols=True)
