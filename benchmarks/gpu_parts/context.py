"""What every part is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rwkv_batch.checks.result import WRONG
from rwkv_batch.checks.target import Target

from ..roofline import MODELS, Card, Sizes
from .device import Stopwatch
from .record import Point, Record

DEFAULT_MODELS = ("1.5B", "7.2B", "0.1B")
DRY_LAYERS = 4
DTYPE_NAMES = frozenset(("bfloat16", "float16", "float32"))
NEAR = 4.0
"""An error up to so many times its limit is red, and no reason to measure another kernel in its place."""
TINY = Sizes(L=2, C=32, F=64, V=97, N=16)
"""For rehearsals."""


@dataclass(frozen=True)
class Context:
    """One part's surroundings.

    Args:
        is_rehearsal: tiny sizes in Triton's interpreter on a CPU: shows that everything runs; no figure means anything.
        is_dry: everything runs once, on a small scale, so that kernels are compiled; nothing is measured.
        is_brief: the part's time is short: figures are of one round.
        folder: where temporary model files go.
        limits: points of the part `limits`, where it has run.
        smoke: points of the part `smoke`, where it has run.
        decode: points of the part `decode`, where it has run.
        asked_models, asked_batches: what the command named; empty where it did not.
    """

    device: torch.device
    is_rehearsal: bool
    is_dry: bool
    folder: Path
    record: Record
    limits: dict[str, Any]
    smoke: dict[str, Any]
    decode: dict[str, Any]
    asked_models: Sequence[str]
    asked_batches: Sequence[int]
    say: Callable[[str], None]
    is_brief: bool = False

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
            "token_latency": self._limit("recurrence, one row", "seconds"),
        }
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            lanes = properties.multi_processor_count * 128 * 1.75e9
            measured |= {"memory": properties.total_memory, "l2": properties.L2_cache_size, "lane_rate": lanes}
        return Card(**{name: value for name, value in measured.items() if value})

    @property
    def models(self) -> dict[str, Sizes]:
        """The models that are measured."""
        return self.choose_models(DEFAULT_MODELS)

    def choose_models(self, default: Sequence[str]) -> dict[str, Sizes]:
        """Those that the command named, else these; with few layers where kernels are only to be compiled."""
        if self.is_rehearsal:
            return {"tiny": TINY}
        found = {name: MODELS[name] for name in self.asked_models or default}
        return {name: replace(sizes, L=DRY_LAYERS) for name, sizes in found.items()} if self.is_dry else found

    def choose_batches(self, default: Sequence[int]) -> Sequence[int]:
        """The numbers of rows that the command named, else these."""
        return (2,) if self.is_rehearsal else self.asked_batches or default

    def broken(self, op: str, backend: str, dtype: str = "", state_dtype: str = "", if_wrong: bool = True) -> str:
        """What `smoke` found to be wrong with an implementation of an op; empty where it found nothing.

        Args:
            dtype, state_dtype: names; empty takes the cases of all dtypes.
            if_wrong: an op that computes wrong numbers counts too, beside one that fails, crashes or never ends.
        """
        for name, point in self.smoke.items():
            if (point["op"], point["backend"]) != (op, backend) or not _concerns(point["name"], dtype, state_dtype):
                continue
            if not point["ok"] and (point["status"] != WRONG or (if_wrong and not _is_near(point))):
                return f"smoke found {name} {point['status']}: {point['why']}"
        return ""

    def reached(self, op: str, backend: str) -> bool:
        """`smoke` has a result of an implementation of an op."""
        return any((point["op"], point["backend"]) == (op, backend) for point in self.smoke.values())

    @property
    def backends(self) -> dict[str, str]:
        """Kernel package → what follows an op's name in results. CUDA kernels cannot be rehearsed."""
        return {"triton": ""} if self.is_rehearsal else {"triton": "", "cuda": "/cuda"}

    def op(
        self, name: str, state_dtype: torch.dtype = torch.float32, backend: str = "triton", **sizes: int
    ) -> Callable[..., Any]:
        """The function that serves an op in bfloat16.

        Raises:
            BackendError, UnusableError: the backend does not serve the op; see `Target.ops`.
        """
        return Target(backend, self.device).op(name, torch.bfloat16, state_dtype, **sizes)

    def share_of_copy(self, num_bytes: float, seconds: float) -> float:
        """Bytes/s as a part of the copy bandwidth."""
        return num_bytes / seconds / self.card.bandwidth

    def _limit(self, point: str, field: str) -> float | None:
        return self.limits.get(point, {}).get(field)


def _is_near(point: Point) -> bool:
    """The error is so near its limit that the kernel's time is worth knowing."""
    worst, limit = point["worst_error"], point["limit"]
    return worst is not None and limit is not None and worst <= NEAR * limit


def _concerns(name: str, dtype: str, state_dtype: str) -> bool:
    """A case whose name holds no other dtype, nor another dtype of states."""
    own, _, state = name.partition(" state ")
    named = DTYPE_NAMES.intersection(own.split())
    other_state = DTYPE_NAMES.intersection(state.split())
    return (not dtype or not named or dtype in named) and (
        not state_dtype or not other_state or state_dtype in other_state
    )
