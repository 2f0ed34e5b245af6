"""The ops of the kernel packages, and how far they may be from what is right."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .record import Point

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LARGEST_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}
"""||out - right|| / ||right||, by the dtype of inputs and outputs. A float32 product in tf32 would be off by 3e-4."""


def op(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    state_dtype: torch.dtype = torch.float32,
    backend: str = "triton",
    **sizes: int,
) -> Callable[..., Any]:
    """An op's function, by default Triton's.

    Raises:
        LookupError: there is none, or it does not serve this.
    """
    path = f"rwkv_batch.{backend}_kernels.{name}"
    if find_spec(path) is None:
        raise LookupError(f"no {backend} kernel {name!r}")
    module = import_module(path)
    reason = module.unsupported_reason(device, dtype, sizes, state_dtype)
    if reason:
        raise LookupError(f"{name}: {reason}")
    return getattr(module, name)


def backends(is_rehearsal: bool) -> dict[str, str]:
    """Kernel package → what marks an op's name in results. CUDA kernels cannot be rehearsed."""
    return {"triton": ""} if is_rehearsal else {"triton": "", "cuda": "/cuda"}


def error(got: Tensor, right: Tensor) -> float:
    """||got - right|| / ||right||; infinite where something is not a number."""
    got, right = got.detach().double(), right.detach().to(got.device).double()
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got - right).norm() / right.norm().clamp_min(1e-300))


class Checks:
    """Some checks of one op, and their outcome."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, float]] = {}

    def close(self, name: str, got: Tensor, right: Tensor, limit: float) -> None:
        """The relative error is within the limit."""
        if got.shape != right.shape:
            raise AssertionError(f"{name}: {list(got.shape)}, expected {list(right.shape)}")
        self.at_most(name, error(got, right), limit)

    def same(self, name: str, got: Tensor, right: Tensor) -> None:
        """Every bit is the same; counts those numbers that differ."""
        differs = got.shape != right.shape or got.dtype != right.dtype
        count = float("inf") if differs else int((_bits(got) != _bits(right).to(got.device)).sum())
        self.at_most(name, count, 0)

    def at_most(self, name: str, value: float, limit: float) -> None:
        self._found[name] = {"value": value, "limit": limit}

    def point(self) -> Point:
        """For the record: all outcomes, whether all are right, and what is wrong if not."""
        wrong = [
            f"{name} is {found['value']:.3g}, at most {found['limit']:.3g}"
            for name, found in self._found.items()
            if not found["value"] <= found["limit"]
        ]
        shares = [found["value"] / found["limit"] for found in self._found.values() if found["limit"]]
        return {
            "ok": not wrong,
            "why": "; ".join(wrong),
            "checks": len(self._found),
            "worst_share_of_limit": round(max(shares, default=0.0), 4),
            "found": self._found,
        }


def _bits(x: Tensor) -> Tensor:
    """Integers, as NaN equals nothing."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(integers[x.element_size()])
