"""What the engine has done so far, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from .scheduler import Plan


@dataclass
class EngineStats:
    """Counters since the engine was built; times in seconds."""

    max_batch_size: int
    running: int = 0
    """Slots in use in the latest step."""
    steps: int = 0
    row_steps: int = 0
    """Rows of all steps: row_steps / (steps * max_batch_size) is the mean occupancy."""
    requested_tokens: int = 0
    """Prompt tokens of all requests, as if nothing were shared."""
    prompt_tokens: int = 0
    """Prompt tokens computed."""
    completion_tokens: int = 0
    schedule_seconds: float = 0.0
    """Planning, and building the step's tensors."""
    model_seconds: float = 0.0
    """Forward pass, logits and scores."""
    sample_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Waiting for sampled tokens to arrive on the host."""
    commit_seconds: float = 0.0
    """Appending tokens, stop strings, finishing."""

    def count(self, plan: Plan) -> None:
        """Count one step's rows and prompt tokens."""
        self.running = len(plan.decoding) + len(plan.chunks)
        self.steps += 1
        self.row_steps += self.running
        self.prompt_tokens += sum(chunk.num_tokens for chunk in plan.chunks)

    def clock(self) -> Clock:
        """Start timing the phases of a step."""
        return Clock(self)


class Clock:
    """Adds the time between laps to the phase that each lap names."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        now = perf_counter()
        setattr(self._stats, phase, getattr(self._stats, phase) + now - self._last)
        self._last = now
