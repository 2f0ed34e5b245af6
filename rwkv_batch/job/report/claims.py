"""Whether the process of a claim is alive, as one tells who looks at the job from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..claim import Claim, Machine
from ..plan import Shard
from .history import UNKNOWN

STALE_SECONDS = 60.0
"""A claim that was not renewed for so long is stale: a running job renews it every 15 seconds."""

OUTCOMES = {"alive": "running", "stale": "suspended, or its machine is gone", "ended": "killed"}
"""The state of a run's claim → the outcome of the run, where its log does not tell it."""
UNFINISHED = {UNKNOWN, *OUTCOMES.values()}
"""Outcomes of a run whose log has no end."""


class ClaimWatch:
    """Judges claims. One that was renewed since it was seen last is alive, whatever the clocks of two machines say."""

    def __init__(self) -> None:
        self._machine = Machine()
        self._seen: dict[str, tuple[int, float]] = {}  # run → how often it was renewed, and when that was seen

    def state(self, claim: Claim, now: float) -> str:
        """Returns "alive", "stale" (not renewed for a minute) or "ended" (its process is gone, on this machine).

        Args:
            now: in seconds since 1970.
        """
        if self._machine.has_ended(claim):
            return "ended"
        beat, seen_at = self._seen.get(claim.run, (claim.beat, float("-inf")))
        if claim.beat != beat:
            seen_at = now
        self._seen[claim.run] = claim.beat, seen_at
        return "alive" if now - max(seen_at, seconds_of(claim.renewed)) < STALE_SECONDS else "stale"


def seconds_of(text: str) -> float:
    """Returns a time of a claim, "2030-01-31 12:00:00 UTC", in seconds since 1970; 0 where it is none."""
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0


def settle(runs: Sequence[Mapping[str, Any]], claims: Mapping[Shard, Claim]) -> list[dict[str, Any]]:
    """Returns runs as `Run.describe` has them, with the outcomes that their logs do not tell.

    A run whose log has no end is alive only if it holds the claim of its shard: a later run of the shard waits until
    the earlier one has ended, and a run that ends in order removes its claim.
    """
    watch, now = ClaimWatch(), time.time()
    held = {claim.run: OUTCOMES[watch.state(claim, now)] for claim in claims.values()}
    found = []
    for run in runs:
        outcome = held.get(run["run"], "killed") if run["outcome"] == UNKNOWN else run["outcome"]
        workers = {index: _with_run(worker, outcome) for index, worker in run.get("workers", {}).items()}
        found.append({**run, "outcome": outcome, **({"workers": workers} if workers else {})})
    return found


def _with_run(worker: Mapping[str, Any], outcome: str) -> dict[str, Any]:
    """A worker of a run that has ended in this way: a worker whose log has no end has ended with its run."""
    if worker["outcome"] != UNKNOWN:
        return dict(worker)
    return {**worker, "outcome": outcome if outcome in UNFINISHED else "ended with its run"}
