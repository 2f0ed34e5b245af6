"""95 % intervals over questions: each question is one cluster, whatever the number of its samples."""

from __future__ import annotations

import math

import numpy as np

from .result import Metric

Z = 1.959964
"""The quantile of the normal distribution that leaves 2.5 % above it."""


def share_metric(name: str, values: np.ndarray, samples: int, *, higher_is_better: bool = True) -> Metric:
    """A metric that is the mean of shares.

    The interval is Wilson's, with the number of independent trials that has the standard error of the questions'
    values. Where each question has one sample this is Wilson's interval of the questions.

    Args:
        values: [n] the share of each question, from 0 to 1; NaN where it does not count.
        samples: of all questions that count; at most so many trials are independent.
    """
    known = values[~np.isnan(values)]
    count = len(known)
    if not count:
        return Metric(name, math.nan, None, None, 0, higher_is_better)
    share = float(known.mean())
    low, high = _wilson(share, _independent(known, share, samples))
    return Metric(name, share, low, high, count, higher_is_better)


def mean_metric(name: str, values: np.ndarray, *, higher_is_better: bool) -> Metric:
    """A metric that is a mean of numbers from 0 up, with an interval by the normal approximation."""
    known = values[~np.isnan(values)]
    count = len(known)
    if not count:
        return Metric(name, math.nan, None, None, 0, higher_is_better)
    mean = float(known.mean())
    if count == 1:
        return Metric(name, mean, None, None, 1, higher_is_better)
    reach = Z * float(known.std(ddof=1)) / math.sqrt(count)
    return Metric(name, mean, max(mean - reach, 0.0), mean + reach, count, higher_is_better)


def _independent(known: np.ndarray, share: float, samples: int) -> float:
    """The number of independent trials whose share has the standard error of these values."""
    count = len(known)
    error = float(((known - share) ** 2).sum()) / count**2
    spread = share * (1 - share)
    most = max(samples, count)
    return min(max(spread / error, count), most) if error > 0 else float(count if spread < 1e-12 else most)


def _wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's interval of a share."""
    middle = (share + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    reach = Z / (1 + Z * Z / trials) * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    return max(middle - reach, 0.0), min(middle + reach, 1.0)
