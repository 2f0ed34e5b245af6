"""The history of a job, from the event logs of its runs: how each run ended, and throughput over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TIMELINE_BINS = 120

COUNTERS = ("prompt_tokens", "completion_tokens", "scored_tokens")
SHARING = {
    "requested_tokens": "tokens_requested",
    "prompt_tokens": "tokens_computed",
    "saved_seconds": "seconds_saved_estimate",
}
"""The engine's counters of shared prefixes → their names in the report."""
LEVELS = ("slots_in_use", "slots")
FACTS = ("config", "chat", "machine", "model", "files", "occupancy", "memory")

Event = Mapping[str, Any]


@dataclass
class Run:
    """One process, from its start to its end or to its last event.

    Args:
        facts: configuration, machine, model, damaged files, occupancy over the steps, memory.
        samples: its progress events, in order of time.
    """

    shard: str
    started: float
    ended: float = 0.0
    outcome: str = "killed, or still running"
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Event] = field(default_factory=list)

    @classmethod
    def all_of(cls, events: Iterable[Event]) -> list[Run]:
        """Returns the runs that wrote these events, in order of start.

        Args:
            events: those of a run in their order; runs may alternate.
        """
        runs: dict[str, Run] = {}
        for event in events:
            run = runs.setdefault(event["run"], cls(event["shard"], event["time"]))
            run._learn(event)
        return sorted(runs.values(), key=lambda run: run.started)

    @property
    def serving_interval(self) -> tuple[float, float]:
        """The times of the start of serving and of the last progress event; there must be one."""
        last = self.samples[-1]
        return last["time"] - last["seconds"], last["time"]

    def describe(self) -> dict[str, Any]:
        """Returns the run for the report; rows and tokens are those that this run has made."""
        last = self.samples[-1] if self.samples else {}
        return {
            "shard": self.shard,
            "outcome": self.outcome,
            "started": self.started,
            "ended": self.ended,
            "serving_seconds": last.get("seconds", 0.0),
            "rows": last.get("rows_done", 0) - last.get("rows_resumed", 0),
            "steps": last.get("steps", 0),
            **{name: last.get(name, 0) for name in COUNTERS},
            **self.sharing,
            **self.facts,
        }

    @property
    def sharing(self) -> dict[str, float]:
        """Tokens and seconds that shared prefixes have saved this run."""
        last = self.samples[-1] if self.samples else {}
        return {name: last.get(counter, 0) for counter, name in SHARING.items()}

    def _learn(self, event: Event) -> None:
        """Takes in one event of this run."""
        self.ended = event["time"]
        match event["event"]:
            case "progress":
                first = self.samples[0] if self.samples else event
                # A run's own seconds, as the system's clock may have been set.
                self.samples.append({**event, "time": first["time"] + event["seconds"] - first["seconds"]})
            case "start" | "model" | "damaged" | "occupancy" | "memory":
                facts = self.facts
                if "worker" in event:
                    facts = self.facts.setdefault("workers", {}).setdefault(str(event["worker"]), {})
                facts |= {name: event[name] for name in FACTS if name in event}
            case "failure":
                self.outcome = f"{event['type']}: {event['message']}"
            case "stopped":
                self.outcome = "stopped by a signal"
            case "end":
                self.outcome = "finished"


def shared_prefixes(runs: Sequence[Run]) -> dict[str, float]:
    """Returns tokens and seconds that shared prefixes have saved all runs together."""
    return {name: sum(run.sharing[name] for run in runs) for name in SHARING.values()}


def utilisation(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the shares of slots and of a step's tokens that were in use: means over the steps of all runs."""
    last = [run.samples[-1] for run in runs if run.samples]
    steps = sum(one["steps"] for one in last) or 1
    slots = sum(one.get("occupancy", 0.0) * one["steps"] for one in last)
    tokens = sum(one.get("step_tokens", 0) / max(one.get("max_batch_tokens", 1), 1) for one in last)
    return {"slots": round(slots / steps, 4), "step_tokens": round(tokens / steps, 4)}


def serving_seconds(runs: Iterable[Run]) -> float:
    """Returns for how many seconds at least one run was serving: shards that run at the same time count once."""
    total, covered_to = 0.0, float("-inf")
    for start, end in sorted(run.serving_interval for run in runs if run.samples):
        total += max(0.0, end - max(start, covered_to))
        covered_to = max(covered_to, end)
    return total


def timeline(runs: Sequence[Sequence[Event]]) -> dict[str, list[float]]:
    """Returns throughput and slots over the job's wall-clock time, summed over runs and shards.

    Args:
        runs: progress events of each run, in order of time.

    Returns:
        Columns of equal length: "seconds" since the first event (the middle of each bin), "prompt_tokens",
        "completion_tokens" and "scored_tokens" per second, "slots_in_use" and "slots" (means over the bin). Empty
        without events.
    """
    runs = [run for run in runs if len(run) > 1]
    if not runs:
        return {name: [] for name in ("seconds", *COUNTERS, *LEVELS)}
    start, end = min(run[0]["time"] for run in runs), max(run[-1]["time"] for run in runs)
    edges = np.linspace(start, max(end, start + 1e-3), TIMELINE_BINS + 1)
    totals = {name: np.zeros(TIMELINE_BINS) for name in (*COUNTERS, *LEVELS)}
    for run in runs:
        times = np.array([sample["time"] for sample in run])
        for name, total in totals.items():
            values = np.array([sample.get(name, 0) for sample in run], dtype=float)
            if name in LEVELS:  # a counter adds up by itself; a level is integrated over time
                values = np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(times))])
            total += np.diff(np.interp(edges, times, values))
    columns = {"seconds": (edges[1:] + edges[:-1]) / 2 - start}
    columns |= {name: total / (edges[1] - edges[0]) for name, total in totals.items()}
    return {name: [round(float(value), 3) for value in column] for name, column in columns.items()}
