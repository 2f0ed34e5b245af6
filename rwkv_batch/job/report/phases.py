"""Where the time of a job went: the phases of its runs, by the thread on which they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from .history import Run, sources


class Words(NamedTuple):
    """What a phase is called, and what happens in it."""

    name: str
    meaning: str


SERVING = {
    "input": Words(
        "waiting for rows to be read", "no row was running, and the next ones were not read and tokenized yet"
    ),
    "admit": Words("starting rows", "free slots are given to rows: shared prefixes are found, states and settings set"),
    "schedule": Words("planning steps", "the rows and prompt tokens of a step are chosen, and its tensors are made"),
    "model": Words("model", "the forward pass, logits and scores; on a GPU the time to enqueue them"),
    "sample": Words("sampling", "tokens are drawn; on a GPU the time to enqueue that"),
    "mask": Words("constraints", "JSON schemas, regular expressions and grammars choose the tokens that may come next"),
    "wait": Words("waiting for the device", "until sampled tokens have arrived; on a GPU its own time appears here"),
    "commit": Words("booking tokens", "tokens are appended, stop strings are matched, rows are finished"),
    "write": Words("waiting for the disk", "finished rows wait until the thread that writes can take them"),
    "other": Words("other", "what is left, such as making columns of results"),
}
"""Phases of the thread that runs the engine, in the order of a step."""
READING = {
    "read": Words("reading rows", "files are read, columns and templates become rows"),
    "encode": Words("tokenizing", "texts become token ids, settings of rows are checked"),
    "idle": Words("idle", "enough rows are read ahead"),
}
"""Phases of the thread that reads ahead."""
WRITING = {
    "commit": Words("writing segments", "finished rows are made safe on the disk, every output.flush_seconds"),
    "publish": Words("writing parts", "the segments of a unit become its part"),
    "idle": Words("idle", "nothing is to be written"),
}
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
        _track("serving", total, {name: known[name] for name in SERVING if name != "other"}, "other"),
        _track("reading ahead", total, {name: known[name] for name in READING if name != "idle"}, "idle"),
        _track("writing", total, {name: writing[name] for name in WRITING if name != "idle"}, "idle"),
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
    workers = source.workers.values()
    return sum(_worker_seconds(worker) for worker in workers) if workers else seconds


def _worker_seconds(worker: Run) -> float:
    """For how long the engine of a worker was there; earlier versions have logged no progress of a worker."""
    seconds: float = worker.samples[-1]["seconds"] if worker.samples else worker.seconds_since_loaded
    return seconds


def _track(name: str, seconds: float, phases: dict[str, float], rest: str) -> Track:
    used = {phase: round(spent, 3) for phase, spent in phases.items() if spent > 0}
    left = max(seconds - sum(used.values()), 0.0)
    return {"name": name, "seconds": round(seconds, 3), "phases": {**used, rest: round(left, 3)} if used else {}}
