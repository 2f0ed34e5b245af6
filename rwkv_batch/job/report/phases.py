"""Where the time of a job went: the phases of its runs, by the thread on which they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .history import Run, sources

SERVING = {
    "input": "waiting for rows to be read",
    "admit": "starting rows (prefixes, states)",
    "schedule": "planning steps",
    "model": "model",
    "sample": "sampling",
    "mask": "constraints",
    "wait": "waiting for the device",
    "commit": "booking tokens",
    "write": "waiting for the disk",
}
"""Phases of the thread that runs the engine, in the order of a step → what they are called."""
READING = {"read": "reading rows", "encode": "tokenizing"}
"""Phases of the thread that reads ahead."""
WRITING = {"commit": "writing segments", "publish": "writing parts"}
"""Phases of the thread that writes."""

SHORTEST_SECONDS = 0.001
"""Phases of less time are not divided."""

Track = dict[str, Any]


def tracks(runs: Sequence[Run]) -> list[Track]:
    """Returns one entry for each kind of thread, with the seconds of all runs and workers together.

    Each has "name", "seconds" (of which the thread was there) and "phases": phase → seconds. What is left is "other",
    or "idle" of a thread that works beside the engine. [] where no run has recorded its phases.
    """
    recorded = [source for source in sources(runs) if source.samples[-1].get("phases")]
    total = sum(_engine_seconds(source) for source in recorded)
    if total < SHORTEST_SECONDS:
        return []
    known: Counter[str] = Counter()
    for source in recorded:
        known.update(source.samples[-1]["phases"])
    writing: Counter[str] = Counter()
    for run in runs:
        writing.update(run.writing)
    found = [
        _track("serving", total, {name: known[name] for name in SERVING}, "other"),
        _track("reading ahead", total, {name: known[name] for name in READING}, "idle"),
        _track("writing", total, {name: writing[name] for name in WRITING}, "idle"),
    ]
    return [track for track in found if track["phases"]]


def share_of(found: Sequence[Track], phase: str) -> float:
    """The share of a phase of the serving thread in its time; 0 where it is not known."""
    return next(
        (track["phases"].get(phase, 0.0) / track["seconds"] for track in found if track["name"] == "serving"), 0.0
    )


def _engine_seconds(source: Run) -> float:
    """For how long the engines of a run were there, added up: its own, or those of its workers."""
    seconds: float = source.samples[-1]["seconds"]
    return sum(worker.seconds_since_loaded for worker in source.workers.values()) if source.workers else seconds


def _track(name: str, seconds: float, phases: dict[str, float], rest: str) -> Track:
    used = {phase: round(spent, 3) for phase, spent in phases.items() if spent > 0}
    left = max(seconds - sum(used.values()), 0.0)
    return {"name": name, "seconds": round(seconds, 3), "phases": {**used, rest: round(left, 3)} if used else {}}
