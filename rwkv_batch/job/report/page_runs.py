"""The part of the report page about runs: each with its workers, and settings that have changed between them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .page_parts import Table
from .wording import count, date, duration, moment, percent, rounded, shortened

MOST_RUNS = 50
"""Runs of the page: the latest ones."""
MOST_LINES = 120
"""Runs and workers of the page."""
MOST_CHANGES = 50
OUTCOME_CHARACTERS = 200
WAITS = ("input", "write")
"""Phases in which the engine waits for something outside of it."""
NUMBERS = ("serving", "rows", "tokens/s", "slots in use", "waiting")

Run = Mapping[str, Any]


def runs(report: Mapping[str, Any]) -> dict[str, Any]:
    """The table of the runs and workers, a sentence on its columns, and a table of settings that have changed."""
    found: Sequence[Run] = report["runs"]
    shown = found[-MOST_RUNS:]
    has_shards = len({run["shard"] for run in found}) > 1
    head = ["run", *(["shard"] if has_shards else []), "machine", *NUMBERS, "outcome"]
    rows: list[list[str]] = []
    left = MOST_LINES - len(shown)
    hidden = 0
    for run in reversed(shown):
        workers = run.get("workers", {})
        named = [*workers.items()][:left]
        left, hidden = left - len(named), hidden + len(workers) - len(named)
        rows += [_row(worker, f"worker {index}", has_shards) for index, worker in reversed(named)]
        rows.append(_row(run, date(began(run)), has_shards))
    rows.reverse()
    cut = len(found) - len(shown)
    what = [f"{count(cut)} earlier runs"] * bool(cut) + [f"{count(hidden)} workers"] * bool(hidden)
    more = f"and {' and '.join(what)}: see report.json" if what else ""
    numbers = frozenset(head.index(name) for name in NUMBERS)
    return {"runs": Table(head, rows, numbers, more), "changes": _changes(found)}


class EngineSpeed(NamedTuple):
    """The speed of one engine: that of a shard's latest run, or of one of its workers."""

    name: str
    tokens: float
    slots: float
    waiting: float


def engine_speeds(report: Mapping[str, Any]) -> list[EngineSpeed]:
    """The engines of the latest run of each shard, side by side: tokens per second, and shares of slots and time.

    A run that has made no token, such as one that has only met error rows again, tells nothing of speed.
    """
    latest = {run["shard"]: run for run in report["runs"] if made(run)}
    found = []
    for shard, run in sorted(latest.items()):
        workers: Mapping[str, Run] = run.get("workers", {})
        several = {f"worker {index}": one for index, one in workers.items()} or {"": run}
        for name, one in several.items():
            shown = [f"shard {shard}"] * (len(latest) > 1 or not name) + [name] * bool(name)
            tokens = made(one) / one["serving_seconds"] if one["serving_seconds"] else 0.0
            slots = one.get("utilisation", {}).get("slots", 0.0)
            found.append(EngineSpeed(", ".join(shown), tokens, slots, waiting(one)))
    return found


def began(run: Run) -> str:
    """When a run has started, in ISO 8601; earlier versions recorded seconds since 1970."""
    value = run["started"]
    return value if isinstance(value, str) else moment(value)


def made(run: Run) -> float:
    """The tokens that a run has made: completion tokens, or scored ones."""
    return float(max(run["completion_tokens"], run["scored_tokens"]))


def waiting(run: Run) -> float:
    """The share of its time in which the engines of a run waited for rows or for the disk."""
    phases, workers = run.get("phases", {}), run.get("workers", {}).values()
    seconds = sum(worker["serving_seconds"] for worker in workers) or run["serving_seconds"]
    return sum(phases.get(name, 0.0) for name in WAITS) / seconds if seconds else 0.0


def _row(run: Run, name: str, has_shards: bool) -> list[str]:
    seconds = run["serving_seconds"]
    workers = len(run.get("workers", {}))
    device = f"{count(workers)} workers" if workers > 1 else run.get("model", {}).get("device")
    machine = [run.get("machine", {}).get("host"), device]
    has_steps = bool(run.get("steps")) and "utilisation" in run
    return [
        name,
        *([run["shard"]] if has_shards else []),
        " · ".join(filter(None, machine)),
        duration(seconds),
        count(run["rows"]),
        rounded(made(run) / seconds) if seconds and made(run) else "",
        percent(run["utilisation"]["slots"]) if has_steps else "",
        percent(min(waiting(run), 1.0)) if run.get("phases") else "",
        shortened(run["outcome"], OUTCOME_CHARACTERS),
    ]


def _changes(found: Sequence[Run]) -> Table:
    """The settings in which a run differs from the one before it."""
    rows: list[list[str]] = []
    configs = [(began(run), dict(_flat(run["config"], ""))) for run in found if "config" in run]
    for (_, before), (started, after) in pairwise(configs):
        for name in [*before, *(name for name in after if name not in before)]:
            if before.get(name) != after.get(name):
                rows.append([date(started), name, *(_shown(config.get(name)) for config in (before, after))])
    left = len(rows) - MOST_CHANGES
    more = f"and {count(left)} earlier changes: see report.json" if left > 0 else ""
    return Table(["run", "setting", "before", "since then"], rows[-MOST_CHANGES:], more=more)


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 200)
