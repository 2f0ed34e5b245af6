"""The context of a part: device, models, results of earlier parts."""

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
"""An error up to so many times its limit is red, but the kernel is still used by the parts that measure."""
TINY = Sizes(L=2, C=32, F=64, V=97, N=16)
"""The model of rehearsals."""


@dataclass(frozen=True)
class Context:
    """Device, choices of the command, and results of earlier parts.

    Args:
        is_rehearsal: run tiny sizes in Triton's interpreter on a CPU. Figures mean nothing.
        is_dry: run every point once on a small scale, to compile kernels. Nothing is measured.
        is_brief: measure one round only, because the time is short.
        folder: for temporary model files.
        limits, smoke, decode: points of the parts of these names; empty if the part has not run.
        asked_models, asked_batches: what the command named; empty for the part's own choice.
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
        """Rates of the card as measured by `limits`; defaults of `Card` for those that were not measured."""
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
        """Returns the models that the command named, else the default. A dry run takes few layers."""
        if self.is_rehearsal:
            return {"tiny": TINY}
        found = {name: MODELS[name] for name in self.asked_models or default}
        return {name: replace(sizes, L=DRY_LAYERS) for name, sizes in found.items()} if self.is_dry else found

    def choose_batches(self, default: Sequence[int]) -> Sequence[int]:
        """Returns the batch sizes that the command named, else the default."""
        return (2,) if self.is_rehearsal else self.asked_batches or default

    def broken(self, op: str, backend: str, dtype: str = "", state_dtype: str = "", if_wrong: bool = True) -> str:
        """Describes the fault that `smoke` found in a backend's op; empty if it found none.

        Args:
            dtype, state_dtype: names of dtypes; empty for the cases of all dtypes.
            if_wrong: wrong numbers count as a fault, besides a failure, a crash and a timeout.
        """
        for name, point in self.smoke.items():
            if (point["op"], point["backend"]) != (op, backend) or not _concerns(point["name"], dtype, state_dtype):
                continue
            if not point["ok"] and (point["status"] != WRONG or (if_wrong and not _is_near(point))):
                return f"smoke found {name} {point['status']}: {point['why']}"
        return ""

    def reached(self, op: str, backend: str) -> bool:
        """True if `smoke` has a result for a backend's op."""
        return any((point["op"], point["backend"]) == (op, backend) for point in self.smoke.values())

    @property
    def backends(self) -> dict[str, str]:
        """Backend → the suffix of an op's name in results. CUDA kernels cannot be rehearsed."""
        return {"triton": ""} if self.is_rehearsal else {"triton": "", "cuda": "/cuda"}

    def op(
        self, name: str, state_dtype: torch.dtype = torch.float32, backend: str = "triton", **sizes: int
    ) -> Callable[..., Any]:
        """Returns the function of a backend's op in bfloat16.

        Raises:
            BackendError, UnusableError: the backend does not serve the op; see `Target.ops`.
        """
        return Target(backend, self.device).op(name, torch.bfloat16, state_dtype, **sizes)

    def share_of_copy(self, num_bytes: float, seconds: float) -> float:
        """Returns bytes/s ÷ copy bandwidth."""
        return num_bytes / seconds / self.card.bandwidth

    def _limit(self, point: str, field: str) -> float | None:
        return self.limits.get(point, {}).get(field)


def _is_near(point: Point) -> bool:
    """True for an error so close to its limit that the kernel is still measured; see `NEAR`."""
    worst, limit = point["worst_error"], point["limit"]
    return worst is not None and limit is not None and worst <= NEAR * limit


def _concerns(name: str, dtype: str, state_dtype: str) -> bool:
    """True if the name of a case contains no other dtype and no other dtype of states."""
    own, _, state = name.partition(" state ")
    named = DTYPE_NAMES.intersection(own.split())
    other_state = DTYPE_NAMES.intersection(state.split())
    return (not dtype or not named or dtype in named) and (
        not state_dtype or not other_state or state_dtype in other_state
    )
