"""Statistics of pairs, against sums over all outcomes and against a bootstrap that draws rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwkv_batch.commands.paired import compare_means, compare_shares, mcnemar


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 75)])
def test_mcnemar_is_the_sum_over_outcomes_that_are_no_likelier(only_a: int, only_b: int) -> None:
    count = only_a + only_b
    chances = [math.comb(count, heads) / 2**count for heads in range(count + 1)]
    limit = chances[only_a] * (1 + 1e-9)
    assert mcnemar(only_a, only_b) == pytest.approx(sum(chance for chance in chances if chance <= limit))


def test_mcnemar_of_many_rows() -> None:
    assert 0 < mcnemar(500_000, 502_000) < 0.06


def test_the_interval_is_that_of_drawn_rows() -> None:
    dice = np.random.default_rng(1)
    a, b = dice.random(400) < 0.5, dice.random(400) < 0.6
    found = compare_shares(a, b)
    rows = dice.integers(400, size=(4000, 400))
    low, high = np.quantile(b[rows].mean(1) - a[rows].mean(1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)
    assert (found.a, found.b) == (a.mean(), b.mean())
    assert found == compare_shares(a, b)


def test_means() -> None:
    dice = np.random.default_rng(2)
    a = dice.normal(size=2000)
    b = a + 0.5 + 0.1 * dice.normal(size=2000)
    found = compare_means(a, b)
    assert found.low < 0.5 < found.high and found.high - found.low == pytest.approx(2 * 1.96 * 0.1 / 2000**0.5, rel=0.1)
