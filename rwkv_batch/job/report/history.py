"""The history of a job, from the event logs of its runs: how each run ended, and throughput over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from .wording import moment

MOST_BINS = 120
FEWEST_BINS = 10
COUNTERS = ("prompt_tokens", "completion_tokens", "scored_tokens")
SHARING = {
    "requested_tokens": "tokens_requested",
    "prompt_tokens": "tokens_computed",
    "saved_seconds": "seconds_saved_estimate",
}
"""The engine's counters of shared prefixes → their names in the report."""
LEVELS = ("slots_in_use", "slots")
UNKNOWN = "killed, or still running"
"""The outcome of a run whose log does not say how it ended; `settle` in claims.py tells more."""
FACTS = ("config", "chat", "machine", "model", "files", "occupancy", "memory")
OF_ALL_WORKERS = {"model", "commit", "publish"}
"""Events of a worker that count for its run too."""

Event = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass
class Run:
    """One process, from its start to its end or to its last event. A worker of a run is one too.

    Args:
        facts: configuration, machine, model, damaged files, occupancy over the steps, memory.
        samples: its progress events, in order of time.
        writing: seconds that its segments and its parts have taken: "commit" and "publish".
        loaded: the time at which its model was there; None before.
        committed: rows that it has committed.
        workers: index → what that worker has written, where a run has workers whose events name them.
        run: the random number of the run.
    """

    shard: str
    started: float
    ended: float = 0.0
    outcome: str = UNKNOWN
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Event] = field(default_factory=list)
    writing: dict[str, float] = field(default_factory=dict)
    loaded: float | None = None
    committed: int = 0
    workers: dict[int, Run] = field(default_factory=dict)
    run: str = ""

    @classmethod
    def all_of(cls, events: Iterable[Event]) -> list[Run]:
        """Returns the runs that wrote these events, in order of start.

        Args:
            events: those of a run in their order; runs may alternate.
        """
        runs: dict[str, Run] = {}
        for event in events:
            run = runs.setdefault(event["run"], cls(event["shard"], event["time"], run=event["run"]))
            if isinstance(index := event.get("worker"), int):
                run.ended = event["time"]
                run.workers.setdefault(index, cls(event["shard"], event["time"]))._learn(event)
            if "worker" not in event or event["event"] in OF_ALL_WORKERS:
                run._learn(event)
        return sorted(runs.values(), key=lambda run: run.started)

    @property
    def sources(self) -> list[Run]:
        """Those whose progress adds up to that of the run: the run itself, or its workers."""
        return [self] if self.samples else [worker for worker in self.workers.values() if worker.samples]

    @property
    def serving_interval(self) -> Interval:
        """The times of the start of serving and of the last progress event; there must be one.

        The progress of a run with workers begins before their models are there.
        """
        last = self.samples[-1]
        start = last["time"] - last["seconds"]
        if self.workers and self.loaded is not None:
            start = min(max(start, self.loaded), last["time"])
        return start, last["time"]

    @property
    def served(self) -> list[Event]:
        """The progress events from the start of serving on."""
        start = self.serving_interval[0]
        earlier = sum(sample["time"] <= start for sample in self.samples)
        return self.samples[max(earlier - 1, 0) :]

    @property
    def loading_seconds(self) -> float:
        """The time from the start until the model was there; 0 where it never was."""
        return 0.0 if self.loaded is None else self.loaded - self.started

    @property
    def seconds_since_loaded(self) -> float:
        """The time from when the model was there until the last event; 0 where it never was."""
        return 0.0 if self.loaded is None else self.ended - self.loaded

    def describe(self) -> dict[str, Any]:
        """Returns the run for the report; rows and tokens are those that this run has made.

        Without progress, as of most workers, rows are those committed, and it has served since the model was there.
        """
        last = [one.samples[-1] for one in self.sources]
        served = [end - start for start, end in (one.serving_interval for one in self.sources)]
        rows = sum(one.get("rows_done", 0) - one.get("rows_resumed", 0) for one in last) if last else self.committed
        totals = {name: sum(one.get(name, 0) for one in last) for name in ("steps", *COUNTERS)}
        return {
            "run": self.run,
            "shard": self.shard,
            "outcome": self.outcome,
            "started": moment(self.started),
            "ended": moment(self.ended),
            "started_epoch": self.started,
            "ended_epoch": self.ended,
            "serving_seconds": max(served, default=self.seconds_since_loaded),
            "rows": rows,
            **totals,
            **self.sharing,
            "utilisation": utilisation([self]),
            "phases": self.phases,
            **self.facts,
            **({"workers": {i: self.workers[i].describe() for i in sorted(self.workers)}} if self.workers else {}),
        }

    @property
    def sharing(self) -> dict[str, float]:
        """Tokens and seconds that shared prefixes have saved this run."""
        last = [one.samples[-1] for one in self.sources]
        return {name: sum(one.get(counter, 0) for one in last) for counter, name in SHARING.items()}

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase; {} where none was recorded."""
        return {name: round(seconds, 3) for name, seconds in _summed(self.sources, "phases").items()}

    def _learn_state(self, event: Event) -> None:
        """Takes in where this worker runs, and how it has ended."""
        match event.get("state"):
            case "placed":
                self.facts["machine"] = {"host": event.get("host")}
            case "left":
                self.outcome = f"stopped at {event['stopped_at']}" if "stopped_at" in event else "finished"
            case "ended":
                self.outcome = event.get("how", "ended")

    def _learn(self, event: Event) -> None:
        """Takes in one event of this run."""
        self.ended = event["time"]
        match event["event"]:
            case "progress" | "worker_progress":
                first = self.samples[0] if self.samples else event
                # A run's own seconds, as the system's clock may have been set.
                self.samples.append({**event, "time": first["time"] + event["seconds"] - first["seconds"]})
            case "start" | "model" | "damaged" | "occupancy" | "memory":
                self.facts |= {name: event[name] for name in FACTS if name in event}
                if event["event"] == "model" and self.loaded is None:
                    self.loaded = event["time"]
            case "commit" | "publish":
                self.writing[event["event"]] = self.writing.get(event["event"], 0.0) + event.get("seconds", 0.0)
                self.committed += event.get("rows", 0) if event["event"] == "commit" else 0
            case "worker":
                self._learn_state(event)
            case "failure":
                self.outcome = f"{event['type']}: {event['message']}"
            case "stopped":
                self.outcome = "stopped by a signal"
            case "end":
                self.outcome = "finished"


def sources(runs: Iterable[Run]) -> list[Run]:
    """Returns all runs and workers whose progress adds up to that of the job."""
    return [source for run in runs for source in run.sources]


def _engines(runs: Iterable[Run]) -> list[Run]:
    """Returns the runs and workers that have slots of their own: where a worker ends, no memory has run out."""
    return [one for run in runs for one in [w for w in run.workers.values() if w.samples] or run.sources]


def shared_prefixes(runs: Sequence[Run]) -> dict[str, float]:
    """Returns tokens and seconds that shared prefixes have saved all runs together."""
    return {name: sum(run.sharing[name] for run in runs) for name in SHARING.values()}


def utilisation(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the shares of slots and of a step's tokens that were in use: means over the steps of all runs.

    Where steps were recorded, also their share.
    """
    last = [run.samples[-1] for run in sources(runs)]
    steps = sum(one["steps"] for one in last) or 1
    slots = sum(one.get("occupancy", 0.0) * one["steps"] for one in last)
    tokens = sum(one.get("step_tokens", 0) / max(one.get("max_batch_tokens", 1), 1) for one in last)
    found = {"slots": round(slots / steps, 4), "step_tokens": round(tokens / steps, 4)}
    recorded = sum(one.get("recorded_steps", 0) for one in last)
    return {**found, "recorded": round(recorded / steps, 4)} if recorded else found


def unrecorded_steps(runs: Sequence[Run]) -> dict[str, int]:
    """Returns how many steps of all runs were not recorded though others were: reason → steps, the most first."""
    return {reason: int(steps) for reason, steps in _summed(sources(runs), "unrecorded").most_common()}


def _summed(several: Sequence[Run], name: str) -> Counter[str]:
    """The sums of the numbers that the last progress events have under this name."""
    total: Counter[str] = Counter()
    for one in several:
        total.update(one.samples[-1].get(name, {}))
    return total


def serving_intervals(runs: Iterable[Run]) -> list[Interval]:
    """Returns the times in which at least one run was serving, in order and without overlaps."""
    found: list[Interval] = []
    for start, end in sorted(run.serving_interval for run in sources(runs)):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def serving_seconds(runs: Iterable[Run]) -> float:
    """Returns for how many seconds at least one run was serving: shards that run at the same time count once."""
    return sum(end - start for start, end in serving_intervals(runs))


def timeline(runs: Sequence[Sequence[Event]]) -> dict[str, list[float]]:
    """Returns throughput and slots over the time in which the job was serving, summed over runs and shards.

    Times in which no run was serving are cut out.

    Args:
        runs: progress events of each run, in order of time.

    Returns:
        Columns of equal length: "seconds" of serving (the middle of each bin), "prompt_tokens", "completion_tokens" and
        "scored_tokens" per second, "slots_in_use" and "slots" (means over the bin). Empty without events.
    """
    runs = [run for run in runs if len(run) > 1]
    if not runs:
        return {name: [] for name in ("seconds", *COUNTERS, *LEVELS)}
    clock = ServingClock([(run[0]["time"], run[-1]["time"]) for run in runs])
    length = max(clock.total, 1e-3)
    edges = np.linspace(0, length, min(max(int(length), FEWEST_BINS), MOST_BINS) + 1)
    totals = {name: np.zeros(len(edges) - 1) for name in (*COUNTERS, *LEVELS)}
    for run in runs:
        times = np.array([clock.at(sample["time"]) for sample in run])
        for name, total in totals.items():
            if name in LEVELS:  # a counter adds up by itself; a level is integrated over time
                values = np.concatenate([[0.0], np.cumsum(_means(run, name) * np.diff(times))])
            else:
                values = np.array([sample.get(name, 0) for sample in run], dtype=float)
            total += np.diff(np.interp(edges, times, values))
    columns = {"seconds": (edges[1:] + edges[:-1]) / 2}
    columns |= {name: total / (edges[1] - edges[0]) for name, total in totals.items()}
    return {name: [round(float(value), 3) for value in column] for name, column in columns.items()}


def _means(run: Sequence[Event], name: str) -> Any:
    """The means of a level between each two of n events, [n - 1].

    Slots in use are those of the steps: a sequence of a few steps begins and ends between two events. Where there were
    steps, the slots are those at the end, for both levels: so no more are in use than there are.
    """
    levels = np.array([sample.get(name, 0) for sample in run], dtype=float)
    means = (levels[1:] + levels[:-1]) / 2
    if "occupancy" not in run[-1]:
        return means
    steps = np.array([sample.get("steps", 0) for sample in run], dtype=float)
    slots = np.array([sample.get("slots", 0) for sample in run], dtype=float)
    has_steps = (np.diff(steps) > 0) & (slots[1:] > 0)
    if name == "slots":
        return np.where(has_steps, slots[1:], means)
    used = np.diff(steps * [sample.get("occupancy", 0.0) for sample in run])
    return np.where(has_steps, np.clip(used / np.maximum(np.diff(steps), 1), 0, 1) * slots[1:], means)


class ServingClock:
    """Seconds of serving at a time: the times in which no run was serving do not count.

    Args:
        intervals: the times of serving of each run; they may overlap.

    Attributes:
        total: seconds of all intervals together, overlaps counted once.
    """

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.total = 0.0
        known: list[tuple[float, float]] = []  # (time, seconds of serving until then)
        end = float("-inf")
        for start, stop in sorted(intervals):
            if start > end:
                known.append((start, self.total))
                end = start
            if stop > end:
                self.total += stop - end
                known.append((stop, self.total))
                end = stop
        self._times, self._seconds = ([one[i] for one in known] for i in (0, 1))

    def at(self, time: float) -> float:
        """The seconds of serving until this time."""
        return float(np.interp(time, self._times, self._seconds)) if self._times else 0.0


def marks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns what has happened on the timeline: "kind" is "resumed" or "halved", "seconds" and "time" say when.

    A run is resumed that starts serving when no other one was. Slots are halved when memory has run out.
    """
    clock = ServingClock([run.serving_interval for run in sources(runs)])
    found: list[dict[str, Any]] = []
    intervals = serving_intervals(runs)
    for (_, ended), (start, _) in pairwise(intervals):
        mark = {"kind": "resumed", "seconds": clock.at(start), "time": moment(start), "pause_seconds": start - ended}
        found.append(mark)
    for source in _engines(runs):
        slots = [sample.get("slots", 0) for sample in source.samples]
        for sample, (before, after) in zip(source.samples[1:], pairwise(slots), strict=True):
            if 0 < after < before:
                at = {"seconds": clock.at(sample["time"]), "time": moment(sample["time"])}
                found.append({"kind": "halved", **at, "slots_before": before, "slots_after": after})
    return sorted(({**mark, "seconds": round(mark["seconds"], 3)} for mark in found), key=lambda mark: mark["seconds"])
