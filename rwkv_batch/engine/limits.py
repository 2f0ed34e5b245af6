"""The sizes of an engine."""

from __future__ import annotations

from typing import NamedTuple


class EngineLimits(NamedTuple):
    """The sizes of an engine."""

    max_batch_size: int
    """Number of slots: sequences that run at the same time."""
    max_batch_tokens: int
    """Tokens of one step, prompts and decode rows together."""
    prefix_host_bytes: int = 0
    """Host memory for the snapshots of prefixes for which the device has no room."""
    admission_delay: float = 0.0
    """Seconds that a free slot waits for more free slots, at most."""
