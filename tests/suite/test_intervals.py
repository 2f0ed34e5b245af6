"""Intervals: Wilson's by its definition, and how often they cover the truth in a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_batch.suite.intervals import Z, mean_metric, share_metric

TRIALS = 1500


def wilson_ends(right: int, count: int) -> list[float]:
    """The shares p whose distance to the share that was found is Z standard errors of p, by their definition."""
    share = right / count
    roots = np.roots([1 + Z * Z / count, -2 * share - Z * Z / count, share * share])
    return sorted(float(root.real) for root in roots)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (421, 1319), (1, 1)])
def test_one_sample_a_question_is_wilson_s_interval(right: int, count: int) -> None:
    values = np.array([1.0] * right + [0.0] * (count - right) + [math.nan] * 3)
    found = share_metric("accuracy", values, count)
    assert (found.value, found.samples, found.higher_is_better) == (right / count, count, True)
    assert [found.low, found.high] == pytest.approx(wilson_ends(right, count), abs=1e-7)


def coverage(values: list[np.ndarray], truth: float, samples: int) -> float:
    found = [share_metric("x", one, samples) for one in values]
    return sum(one.low <= truth <= one.high for one in found if one.low is not None and one.high is not None) / TRIALS


@pytest.mark.parametrize("samples", [1, 4, 16])
def test_clustered_samples_are_covered(samples: int) -> None:
    """Questions of different difficulty: samples of one question depend on each other."""
    rng = np.random.default_rng(samples)
    chances = rng.beta(0.6, 1.2, (TRIALS, 60))
    values = rng.binomial(samples, chances) / samples
    assert 0.93 < coverage([*values], 0.6 / 1.8, 60 * samples) < 0.98


def test_an_interval_that_forgets_the_questions_would_not_cover() -> None:
    """What the test above can see: with all samples taken as independent, the truth is missed far more often."""
    rng = np.random.default_rng(16)
    right = rng.binomial(16, rng.beta(0.6, 1.2, (TRIALS, 60)))
    flat = [np.repeat([1.0, 0.0], [count, 960 - count]) for count in right.sum(1)]
    assert coverage(flat, 0.6 / 1.8, 960) < 0.6


def test_equal_questions_have_the_interval_of_all_samples() -> None:
    found, all_samples = share_metric("x", np.full(50, 0.5), 200), share_metric("x", np.array([0.0, 1.0] * 100), 200)
    assert (found.low, found.high) == pytest.approx((all_samples.low, all_samples.high), abs=1e-7)


def test_means() -> None:
    rng = np.random.default_rng(0)
    found = [mean_metric("tokens", rng.gamma(2, 50, 80), higher_is_better=False) for _ in range(TRIALS)]
    covered = sum(one.low <= 100 <= one.high for one in found if one.low is not None and one.high is not None)
    assert 0.92 < covered / TRIALS < 0.97
    one = mean_metric("tokens", np.array([5.0, math.nan]), higher_is_better=False)
    assert (one.value, one.low, one.high, one.samples) == (5, None, None, 1)


def test_nothing_is_known_of_no_questions() -> None:
    for found in (
        share_metric("x", np.array([math.nan]), 1, higher_is_better=False),
        mean_metric("x", np.array([math.nan]), higher_is_better=False),
    ):
        assert math.isnan(found.value)
        assert (found.low, found.high, found.samples, found.higher_is_better) == (None, None, 0, False)
