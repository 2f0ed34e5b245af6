"""Whether the process of a claim is alive, as one tells who looks at the job from outside."""

from __future__ import annotations

from datetime import datetime, timezone

from ..claim import Claim, Machine

STALE_SECONDS = 60.0
"""A claim that was not renewed for so long is stale: a running job renews it every 15 seconds."""


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
