"""The predicted time of a step: the sum over its launches.

A launch takes its latency, and after that the longest of:

1. bytes: those from and to memory over the copy bandwidth, and all of them over the rate of the cache;
2. operations of a matrix product over the card's matrix rate;
3. the chain of one program: the trips of its loop over K, or the tokens of a row, one after the other;
4. instructions over the rate at which all multiprocessors issue them.

A gap follows each launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from .cards import Card
from .launches import Launch
from .traffic import Moved, traffic

RESIDENT = 2
"""Programs of the sampler's second kernel that a multiprocessor runs at a time: 128 registers, 256 threads."""


@dataclass(frozen=True)
class Predicted:
    """A launch with its bytes and its seconds, without the gap after it.

    Args:
        limit: what the launch's time is, besides its latency: "bytes", "operations", "chain" or "instructions".
    """

    launch: Launch
    moved: Moved
    seconds: float
    limit: str


@dataclass(frozen=True)
class Prediction:
    """A step on a card."""

    parts: Sequence[Predicted]
    card: Card

    @property
    def busy(self) -> float:
        """Seconds in which the device computes."""
        return sum(part.seconds for part in self.parts)

    @property
    def recorded(self) -> float:
        """Seconds of the step when it is replayed from a recording."""
        return self.busy + self.card.gap * len(self.parts)

    @property
    def unrecorded(self) -> float:
        """Seconds of the step when the host makes each launch: the longer of both."""
        return max(self.recorded, self.card.launch * len(self.parts))

    @property
    def memory_bytes(self) -> float:
        """Bytes from and to the card's memory."""
        return sum(part.moved.memory for part in self.parts)

    def seconds_of(self, *names: str) -> float:
        """Seconds of all launches of these kernels."""
        return sum(part.seconds for part in self.parts if part.launch.name in names)


def predict(launches: Sequence[Launch], card: Card) -> Prediction:
    """Predicts a step from its launches."""
    moved = traffic(launches, card.l2)
    return Prediction([_predict(*each, card) for each in zip(launches, moved, strict=True)], card)


def _predict(launch: Launch, moved: Moved, card: Card) -> Predicted:
    work, latencies = launch.work, card.latencies
    kind = "product" if work.is_product else "recurrence" if work.is_recurrence else launch.name
    latency = latencies.get(kind, latencies[""])
    bandwidth = card.copy * (card.update_share if work.is_recurrence else 1.0)
    num_bytes = max(moved.memory / bandwidth, launch.num_bytes / card.l2_rate)
    limits = {
        "bytes": num_bytes,
        "operations": work.operations / card.rates.get(launch.name, card.matrix_rate),
        "chain": _chain(launch, card),
        "instructions": work.sm_cycles / (card.processors * card.clock),
    }
    if work.rows:
        latency *= ceil(work.rows / (RESIDENT * card.processors))
    limit = max(limits, key=lambda name: limits[name])
    return Predicted(launch, moved, latency + limits[limit], limit)


def _chain(launch: Launch, card: Card) -> float:
    """Seconds of the longest chain of one program. The first token of a row is part of the recurrence's latency."""
    work = launch.work
    if work.is_recurrence:
        return (work.tokens - 1) * card.latencies["a token, CUDA" if launch.name.endswith(".cu") else "a token"]
    if not work.is_product:
        return 0.0
    if work.iterations:
        tokens, depth = work.tile
        usual = card.trips["linear_kernel", 64, 64] * depth / 64
        return work.iterations * card.trips.get((launch.name, tokens, depth), usual)
    return work.depth / 64 * card.trips["library", 3 if work.is_batch else 1, 64]
