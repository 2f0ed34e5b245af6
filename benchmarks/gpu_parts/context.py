"""What every part is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..roofline import MODELS, Card, Sizes
from .device import Stopwatch
from .record import Record

TINY = Sizes(L=2, C=32, F=64, V=97, N=16)
"""For rehearsals."""


@dataclass(frozen=True)
class Context:
    """One part's surroundings.

    Args:
        is_rehearsal: tiny sizes in Triton's interpreter on a CPU: shows that everything runs; no figure means anything.
        is_dry: everything runs once, on a small scale, so that kernels are compiled; nothing is measured.
        folder: where temporary model files go.
        limits: points of the part `limits`, where it has run.
        decode: points of the part `decode`, where it has run.
    """

    device: torch.device
    is_rehearsal: bool
    is_dry: bool
    folder: Path
    record: Record
    limits: dict[str, Any]
    decode: dict[str, Any]
    say: Callable[[str], None]

    @property
    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.device, 0 if self.is_dry else 1 if self.is_rehearsal else 10)

    @property
    def card(self) -> Card:
        """What the card was measured to do; the defaults of `Card` where it was not."""
        measured = {
            "bandwidth": self._limit("copy", "bytes_per_second"),
            "matrix_rate": self._limit("bfloat16 product", "operations_per_second"),
            "launch": self._limit("launch in a graph", "seconds"),
        }
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            lanes = properties.multi_processor_count * 128 * 1.75e9
            measured |= {"memory": properties.total_memory, "l2": properties.L2_cache_size, "lane_rate": lanes}
        return Card(**{name: value for name, value in measured.items() if value})

    @property
    def models(self) -> dict[str, Sizes]:
        """The models that are measured."""
        return {"tiny": TINY} if self.is_rehearsal else {name: MODELS[name] for name in ("0.1B", "1.5B", "7.2B")}

    def share_of_copy(self, num_bytes: float, seconds: float) -> float:
        """Bytes/s as a part of the copy bandwidth."""
        return num_bytes / seconds / self.card.bandwidth

    def _limit(self, point: str, field: str) -> float | None:
        return self.limits.get(point, {}).get(field)


Part = Callable[[Context], list[str]]
"""Measures points and returns the lines of a short table."""
