"""Statistics of paired rows: the same rows, scored twice."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

RESAMPLINGS = 10_000
INTERVAL = (0.025, 0.975)
Z = 1.959964
"""The quantile of the normal distribution that belongs to `INTERVAL`."""


class Proportions(NamedTuple):
    """Two shares of the same rows, such as the accuracies of two models.

    Args:
        rows: their number.
        a, b: the shares.
        only_a, only_b: rows that are right in one of them alone.
        low, high: 95 % interval of b - a, by a paired bootstrap.
        p_value: of McNemar's exact test, two-sided: how likely a difference of this size is where there is none.
    """

    rows: int
    a: float
    b: float
    only_a: int
    only_b: int
    low: float
    high: float
    p_value: float


class Means(NamedTuple):
    """Two means over the same rows.

    Args:
        rows: their number.
        a, b: the means.
        low, high: 95 % interval of b - a, by the normal approximation.
    """

    rows: int
    a: float
    b: float
    low: float
    high: float


def compare_shares(a: Any, b: Any) -> Proportions:
    """Compares two arrays [rows] of bool."""
    rows, only_a, only_b = len(a), int(np.sum(a & ~b)), int(np.sum(b & ~a))
    # A bootstrap that draws rows with replacement draws how many of them are of each kind: a multinomial number.
    shares = np.array([only_a, only_b, rows - only_a - only_b]) / rows
    drawn = np.random.default_rng(0).multinomial(rows, shares, size=RESAMPLINGS)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / rows, INTERVAL)
    p_value = mcnemar(only_a, only_b)
    return Proportions(rows, float(a.mean()), float(b.mean()), only_a, only_b, float(low), float(high), p_value)


def mcnemar(only_a: int, only_b: int) -> float:
    """Returns the p-value of McNemar's exact test: of a fair coin that falls `only_a` and `only_b` times."""
    count, fewer = only_a + only_b, min(only_a, only_b)
    steps = np.arange(1, fewer + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((count - steps + 1) / steps))]) - count * np.log(2)
    return float(min(1.0, 2 * np.exp(logs).sum()))


def compare_means(a: Any, b: Any) -> Means:
    """Compares two arrays [rows] of float64."""
    difference = b - a
    spread = float(difference.std(ddof=1)) if len(a) > 1 else 0.0
    reach = Z * spread / len(a) ** 0.5
    middle = float(difference.mean())
    return Means(len(a), float(a.mean()), float(b.mean()), middle - reach, middle + reach)
