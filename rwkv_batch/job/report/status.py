"""The state of a job at this moment, from its files alone: nothing is written, and no running job is disturbed."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..claim import read_claims, read_content
from ..output.commit import part_name
from ..output.sizes import Size, size_below
from ..plan import Shard, UnitPlan
from ..state import read_job
from .claims import ClaimWatch
from .follow import Event, LogFollower, PartErrors
from .report import find_job
from .run_status import read_prometheus
from .shard_status import ShardStatus

SUCCESS = "_SUCCESS.json"

Status = dict[str, Any]


class JobWatch:
    """Looks at a job, again and again.

    Args:
        out: the job's output folder, or its state folder.

    Raises:
        ConfigurationError: there is no such job.
        ResumeError: job.json is damaged.
    """

    def __init__(self, out: str) -> None:
        self._folders = find_job(out)
        self._storage = self._folders.open_storage()
        job = read_job(self._storage, self._folders.state)
        assert job is not None
        self._task = str(job["settings"]["task"])
        rows, units = job["plan"]["rows"], job["plan"]["units"]
        self._plan = UnitPlan(rows, job["plan"].get("output.rows_per_part") or max(1, -(-rows // units)))
        self._parts = [part_name(index, units) for index in range(units)]
        self._log = LogFollower(self._storage, self._folders.state)
        self._claims = ClaimWatch()
        column = job.get("columns", {}).get("error_code", "error_code")
        self._errors = PartErrors(self._storage, self._folders.output, column)

    def look(self) -> Status:
        """Returns the status as plain JSON; docs/reference/output.md has its keys.

        Raises:
            OSError: a folder cannot be listed.
        """
        now = time.time()
        claims = dict(read_claims(self._storage, self._folders.state))
        names = self._storage.list(self._folders.state)
        runs = self._log.runs(names)
        present = set(self._storage.list(self._folders.output))
        published = {index: name for index, name in enumerate(self._parts) if name in present}
        codes, unreadable = self._errors.count([*published.values()], _publications(runs))
        shards = [
            ShardStatus(
                shard, events, self._metrics(shard, names), claim, self._claims.state(claim, now) if claim else "", now
            )
            for shard, events, claim in _latest_runs(runs, claims)
        ]
        is_finished = len(published) == len(self._parts) and SUCCESS in names
        is_running = any(shard.is_running for shard in shards)
        state = "running" if is_running else "stopped" if not is_finished else "errors" if codes else "finished"
        rows = self._rows(shards, published)
        return {
            "output": self._folders.output,
            "state_folder": self._folders.state,
            "task": self._task,
            "time": now,
            "state": state,
            "rows": rows,
            "parts": {"published": len(published), "planned": len(self._parts), "unreadable": unreadable},
            "errors": {
                "published": dict(codes.most_common()),
                "running": sum(int(shard.latest.get("errors", 0)) for shard in shards if shard.is_running),
            },
            **_speeds(shards),
            "shards": [shard.describe() for shard in shards],
            "missing_shards": [] if is_finished else _unclaimed(self._plan, shards, published),
            "runs": len(runs),
            "disk": {
                "output": _size(size_below(self._folders.output)),
                "state_folder": _size(size_below(self._folders.state)),
            },
        }

    def _metrics(self, shard: Shard, names: Sequence[str]) -> dict[str, float]:
        """Returns what metrics.prom of a shard says; {} where it is not there, or damaged."""
        name = shard.file_name("metrics", "prom")
        if name not in names:
            return {}
        with suppress(OSError):
            content = read_content(self._storage, self._folders.file(name))
            return read_prometheus((content or b"").decode(errors="replace"))
        return {}

    def _rows(self, shards: Sequence[ShardStatus], published: Mapping[int, str]) -> dict[str, int]:
        """Counts rows: those of published parts, and those that the latest run of each shard tells of beyond them."""
        done = committed = sum(self._plan.unit(index).num_rows for index in published)
        for status in shards:
            sizes = Counter[bool]()
            for unit in status.shard.units(self._plan):
                sizes[unit.index in published] += unit.num_rows
            safe = min(max(status.rows_committed - sizes[True], 0), sizes[False])
            finished = int(status.latest.get("rows_done", 0)) if status.is_running else 0
            committed += safe
            done += max(safe, min(finished - sizes[True], sizes[False]))
        return {"total": self._plan.num_rows, "done": done, "committed": committed}


def _publications(runs: Mapping[str, Sequence[Event]]) -> dict[str, Event]:
    """Returns part → the latest event of its publication."""
    found: dict[str, Event] = {}
    for events in runs.values():
        for event in events:
            if event["event"] == "publish" and event["time"] >= found.get(event["part"], event)["time"]:
                found[event["part"]] = event
    return found


def _latest_runs(
    runs: Mapping[str, Sequence[Event]], claims: Mapping[Shard, Any]
) -> list[tuple[Shard, Sequence[Event], Any]]:
    """Returns for each shard the events of its latest run, and its claim; in the order of the shards.

    Runs of shards with another count are left out where a later run has units of theirs.
    """
    latest: dict[Shard, Sequence[Event]] = {}
    for events in runs.values():
        shard = _shard(events[0]["shard"])
        if shard is not None and (shard not in latest or events[0]["time"] > latest[shard][0]["time"]):
            latest[shard] = events
    chosen: dict[Shard, Sequence[Event]] = {
        shard: [event for event in runs.get(claim.run, ()) if event["shard"] == str(shard)]
        for shard, claim in claims.items()
    }
    chosen = {shard: events or latest.get(shard, []) for shard, events in chosen.items()}
    for shard, events in sorted(latest.items(), key=lambda item: -item[1][-1]["time"]):
        if not any(shard.overlaps(other) for other in chosen):
            chosen[shard] = list(events)
    order = sorted(chosen, key=lambda shard: (shard.count, shard.index))
    return [(shard, chosen[shard], claims.get(shard)) for shard in order]


def _shard(text: str) -> Shard | None:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    return Shard(int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def _speeds(shards: Sequence[ShardStatus]) -> dict[str, Any]:
    """Returns the rates of all running shards together, and the seconds until the last of them ends."""
    running = [shard for shard in shards if shard.is_running]
    rates: Counter[str] = Counter()
    for shard in running:
        rates.update(shard.rates())
    left = [shard.seconds_left() for shard in running]
    known = [seconds for seconds in left if seconds is not None]
    return {
        "rates": {name: round(rate, 3) for name, rate in rates.items()},
        "seconds_left": max(known) if known and len(known) == len(left) else None,
    }


def _unclaimed(plan: UnitPlan, shards: Sequence[ShardStatus], published: Mapping[int, str]) -> list[str]:
    """Returns the shards that have units without a part and that nobody runs, as --shard takes them.

    Of a job that runs in shards of one count these are all shards of that count.
    """
    counts = {status.shard.count for status in shards}
    if len(counts) != 1:
        return []
    (count,) = counts
    running = {status.shard for status in shards if status.is_running}
    missing = (Shard(index, count) for index in range(count) if Shard(index, count) not in running)
    return [str(shard) for shard in missing if any(unit.index not in published for unit in shard.units(plan))]


def _size(size: Size | None) -> dict[str, int] | None:
    return None if size is None else size._asdict()
