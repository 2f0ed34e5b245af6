"""Comparisons of a check: errors, each with its limit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Found(NamedTuple):
    """One error and its limit."""

    name: str
    value: float
    limit: float

    @property
    def is_right(self) -> bool:
        return self.value <= self.limit

    @property
    def share(self) -> float:
        """The error as a share of its limit; infinite where it is NaN, or where the limit is 0 and the error is not."""
        if self.limit:
            return self.value / self.limit if self.value == self.value else float("inf")
        return 0.0 if self.value == 0 else float("inf")

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.3g}, at most {self.limit:.3g}"


class Checks:
    """Comparisons of one op, and their outcome."""

    def __init__(self) -> None:
        self.found: list[Found] = []

    def close(self, name: str, got: Tensor, right: Tensor, limit: float) -> None:
        """Compares the largest error, relative to the largest magnitude of `right`, with the limit."""
        difference, right = _difference(name, got, right)
        self.at_most(name, _ratio(difference.abs().amax(), right.abs().amax()) if right.numel() else 0.0, limit)

    def close_in_norm(self, name: str, got: Tensor, right: Tensor, limit: float) -> None:
        """Compares the norm of the error, relative to the norm of `right`, with the limit."""
        difference, right = _difference(name, got, right)
        self.at_most(name, _ratio(difference.norm(), right.norm()), limit)

    def near(self, name: str, got: Tensor, right: Tensor, limit: float) -> None:
        """Compares the largest absolute error with the limit."""
        difference, _ = _difference(name, got, right)
        self.at_most(name, float(difference.abs().amax()) if difference.numel() else 0.0, limit)

    def same(self, name: str, got: Tensor, right: Tensor) -> None:
        """Compares all bits: the error is the count of numbers that differ, and the limit is 0."""
        differs = got.shape != right.shape or got.dtype != right.dtype
        count = float("inf") if differs else int((_bits(got) != _bits(right).to(got.device)).sum())
        self.at_most(name, count, 0)

    def at_most(self, name: str, value: float, limit: float) -> None:
        self.found.append(Found(name, float(value), float(limit)))

    @property
    def wrong(self) -> list[Found]:
        """Errors above their limit; NaN is above every limit."""
        return [found for found in self.found if not found.is_right]

    @property
    def worst(self) -> Found:
        """The error that is the largest share of its limit.

        Raises:
            ValueError: nothing was compared.
        """
        return max(self.found, key=lambda found: found.share)

    def point(self) -> dict[str, Any]:
        """Plain JSON: all outcomes, whether all are right, and what is wrong if not."""
        shares = [found.share for found in self.found if found.limit]
        return {
            "ok": not self.wrong,
            "why": "; ".join(map(str, self.wrong)),
            "checks": len(self.found),
            "worst_share_of_limit": round(max(shares, default=0.0), 4),
            "found": {found.name: {"value": found.value, "limit": found.limit} for found in self.found},
        }


@contextmanager
def poisoned() -> Iterator[None]:
    """While it is active, new tensors without contents are filled with NaN, or with the largest integer."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` would import torch's compiler
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _difference(name: str, got: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """got - right, with infinity in the place of NaN, and right; float64."""
    if got.shape != right.shape:
        raise AssertionError(f"{name}: got the shape {list(got.shape)}, expected {list(right.shape)}")
    right = right.detach().to(got.device).double()
    return (got.detach().double() - right).nan_to_num(nan=torch.inf), right


def _ratio(error: Tensor, size: Tensor) -> float:
    return float(error) / max(float(size), 1e-300)


def _bits(x: Tensor) -> Tensor:
    """The bits of numbers as integers: unlike NaNs, they can be compared."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(integers[x.element_size()])
