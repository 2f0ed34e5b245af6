"""The status of one shard of a job: who serves it, how far it is, how fast, and its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from typing import Any

from ..claim import Claim
from ..plan import Shard
from .claims import OUTCOMES
from .follow import Event
from .history import COUNTERS, UNKNOWN, Run
from .wording import moment

RATE_SECONDS = 60.0
"""Rates are those of the last minute."""
SHORTEST = 1.0
"""Seconds that are left while rows are."""
RATED = {"rows_done": "rows", **{name: name for name in COUNTERS}}
"""Counter → the name of its rate."""
SHOWN = ("rows_total", "rows_resumed", "rows_done", "rows_committed", "errors", "slots_in_use", "slots", "seconds")


class ShardStatus:
    """What is known of a shard.

    Args:
        shard: of the job.
        events: of its latest run; none where that has written none yet.
        metrics: the values of the shard's metrics.prom, which may be those of an earlier run; {} where there are none.
        claim: None where nobody has claimed the shard.
        claim_state: "alive", "stale" or "ended".
        now: in seconds since 1970.

    Attributes:
        latest: the latest counters of the run; {} before it serves.
        is_running: a process serves the shard.
    """

    def __init__(
        self,
        shard: Shard,
        events: Sequence[Event],
        metrics: Mapping[str, float],
        claim: Claim | None,
        claim_state: str,
        now: float,
    ) -> None:
        self.shard = shard
        self._now = now
        self.is_running = claim_state == "alive"
        self._claim, self._claim_state = claim, claim_state
        self._events = events
        own = claim is None or not events or events[0]["run"] == claim.run
        self._run = Run.all_of(events)[0] if events else None
        if not own and self.is_running:  # the run that holds the claim has logged nothing yet
            self._events, self._run = [], None
        self._points = self._progress(metrics)
        self.latest: Mapping[str, Any] = self._points[-1] if self._points else {}

    def _progress(self, metrics: Mapping[str, float]) -> list[Mapping[str, Any]]:
        """Returns the counters of the run over its time: its progress events, and the metrics where they are later."""
        if self._run is None:
            return []
        points: list[Mapping[str, Any]] = [*self._run.samples]
        last = points[-1]["seconds"] if points else -1.0
        if metrics and metrics["time"] >= self._run.started and metrics["seconds"] > last:
            points.append(metrics)
        return points

    @property
    def rows_committed(self) -> int:
        """The rows of the shard that a crash cannot lose."""
        known, since = self.latest.get("rows_committed", 0), self.latest.get("time", 0.0)
        later = (one for one in self._events if one["event"] == "commit" and one["time"] > since)
        return int(known) + sum(int(one["rows"]) for one in later)

    def rates(self) -> dict[str, float]:
        """Returns the rates of the last minute, or since the progress event before it; {} before there are two."""
        if len(self._points) < 2:
            return {}
        last = self._points[-1]
        earlier = [one for one in self._points[:-1] if one["seconds"] <= last["seconds"] - RATE_SECONDS]
        first = earlier[-1] if earlier else self._points[0]
        seconds = last["seconds"] - first["seconds"]
        if seconds <= 0:
            return {}
        return {name: (last.get(key, 0) - first.get(key, 0)) / seconds for key, name in RATED.items()}

    def seconds_left(self) -> float | None:
        """Returns the run's own estimate of the seconds until all rows are done, less the time since it was made; None
        where there is none yet.

        Of a run of an earlier version, which has none: at the rate of rows of the last minute, or of the whole run
        where no row was done in that minute.
        """
        left = self.latest.get("rows_total", 0) - self.latest.get("rows_done", 0)
        if self.latest and left <= 0:
            return 0.0
        if "seconds_left" in self.latest:
            known = self.latest["seconds_left"]
            age = max(self._now - self.latest["time"], 0.0)
            return None if known is None or isnan(known) else max(known - age, SHORTEST)
        rate = self.rates().get("rows", 0.0)
        if rate <= 0 and self.latest.get("seconds"):
            rate = (self.latest.get("rows_done", 0) - self.latest.get("rows_resumed", 0)) / self.latest["seconds"]
        return left / rate if rate > 0 else None

    def describe(self) -> dict[str, Any]:
        """Returns the shard as plain JSON."""
        claim = None if self._claim is None else {"state": self._claim_state, **asdict(self._claim)}
        return {
            "shard": str(self.shard),
            "claim": claim,
            "doing": self._doing(),
            "run": None if self._run is None else self._described_run(self._run),
            "progress": {name: self.latest.get(name, 0) for name in SHOWN} if self.latest else {},
            "rates": {name: round(rate, 3) for name, rate in self.rates().items()} if self.is_running else {},
            "seconds_left": self.seconds_left() if self.is_running else None,
            "workers": self._workers(),
        }

    def _doing(self) -> str:
        """What the shard's process does: "starting", "loading", "serving", "ending"; "" where none runs."""
        if not self.is_running:
            return ""
        if self._run is None:
            return "starting"
        if self._run.outcome == "finished":
            return "ending"
        return "serving" if self._points else "loading"

    def _described_run(self, run: Run) -> dict[str, Any]:
        outcome = run.outcome
        if outcome == UNKNOWN:
            outcome = OUTCOMES.get(self._claim_state, "killed")
        return {
            "run": self._events[0]["run"],
            "outcome": outcome,
            "host": run.facts.get("machine", {}).get("host"),
            "started": moment(run.started),
            "last_event": moment(run.ended),
        }

    def _workers(self) -> list[dict[str, Any]]:
        """Returns the latest state of each worker of the run: placed, ready, ended or left."""
        workers: dict[int, dict[str, Any]] = {}
        for event in self._events:
            index, state = event.get("worker"), event.get("state")
            if event["event"] != "worker" or not isinstance(index, int):
                continue
            known = workers.setdefault(index, {"worker": index, "processes": 0})
            known |= {"state": state, "since": moment(event["time"])}
            known |= {name: event[name] for name in ("host", "pid", "how") if name in event}
            if state == "placed":
                known["processes"] += 1
                known.pop("how", None)
        return [workers[index] for index in sorted(workers)]
