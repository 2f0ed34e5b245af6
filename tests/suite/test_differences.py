"""Paired tests against their definitions, and the samples that are listed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from rwkv_batch.suite import differences as module
from rwkv_batch.suite.differences import MOST_CHANGED, Difference, adjusted, difference, holm
from rwkv_batch.suite.result import Metric, Samples

from .results import result


def compared(a: Sequence[float], b: Sequence[float]) -> Difference:
    found = difference(result("a", "t", a), result("b", "t", b))
    assert found is not None
    return found


def test_shares_by_mcnemar_s_test() -> None:
    """Five samples get better and one gets worse: of 64 ways to toss six coins, 14 are as uneven."""
    found = compared([0] * 5 + [1, 1, 0], [1] * 5 + [0, 1, 0])
    assert (found.only_a, found.only_b, found.samples) == (1, 5, 8)
    assert found.p_value == pytest.approx(14 / 64)
    assert (found.mean_a, found.mean_b) == (2 / 8, 6 / 8)
    assert [(one.identity, one.a, one.b) for one in found.changed] == [
        *((str(place), 0, 1) for place in range(5)),
        ("5", 1, 0),
    ]
    assert found.low <= 0.5 <= found.high


def test_other_values_by_random_signs() -> None:
    """All 2^7 signs of the differences, against those that are drawn."""
    a, b = [0.25, 0.5, 0, 0, 1, 0.75, 0.5, 0.25, 1], [0.5, 0.5, 0.5, 0.25, 0.75, 1, 1, 0.5, 1]
    gaps = np.array(b) - np.array(a)
    changed = gaps[gaps != 0]
    signs = np.array([*product((-1, 1), repeat=len(changed))])
    exact = float(np.mean(np.abs(signs @ np.abs(changed)) >= abs(gaps.sum()) - 1e-12))
    found = compared(a, b)
    assert found.p_value == pytest.approx(exact, abs=0.01) and exact < 0.1
    assert (found.only_a, found.only_b) == (1, 6)
    assert [one.identity for one in found.changed] == ["2", "6", "0", "3", "4", "5", "7"]  # the largest first


def test_many_values_by_the_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400), np.clip(rng.random(400) + 0.06, 0, 1)
    drawn = compared(list(a), list(b)).p_value
    monkeypatch.setattr(module, "MOST_SIZES", 10)
    assert compared(list(a), list(b)).p_value == pytest.approx(drawn, abs=0.02)
    assert 0.01 < drawn < 0.3


def test_p_values_are_even_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(3)
    found = [compared(list(one[0]), list(one[1])).p_value for one in rng.binomial(4, 0.5, (150, 2, 40)) / 4]
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.11


def test_no_sample_differs() -> None:
    found = compared([0.5, 1, 0], [0.5, 1, 0])
    assert (found.p_value, found.changed, found.only_a, found.only_b) == (1, (), 0, 0)


def test_samples_are_joined_by_their_ids() -> None:
    a = result("a", "t", [1, 0, 1, 0], ids=["w", "x", "y", "x"])
    b = result("b", "t", [0, 1, math.nan, 1], ids=["x", "w", "y", "z"])
    found = difference(a, b)
    assert found is not None and (found.samples, found.only_a, found.only_b) == (2, 0, 0)  # w and the first x
    assert difference(a, result("b", "t", [1.0], ids=["other"])) is None
    assert difference(a, result("b", "t", [math.nan] * 4)) is None
    assert difference(a, replace(a, samples=None)) is None


def test_the_metric_is_one_that_both_know() -> None:
    values = np.array([1.0, 2.0, 4.0])
    loss = Metric("bits_per_byte", 1.0, None, None, 3, False)
    a = replace(result("a", "t", [0.0]), metrics=(loss,), samples=Samples(["x", "y", "z"], {"nats": values}))
    b = replace(a, model="b", samples=Samples(["x", "y", "z"], {"nats": values - 1}))
    found = difference(a, b)
    assert found is not None and (found.metric, found.only_a, found.only_b) == ("nats", 0, 3)  # less is better
    other = replace(
        result("b", "t", [1.0, 0.0, 1.0]),
        samples=Samples(["x", "y", "z"], {"no_answer": values}),
    )
    mine = replace(other, metrics=(*other.metrics, Metric("no_answer", 0.0, None, None, 3, False)))
    assert difference(mine, mine) is None  # shares of errors do not stand for the metric


def test_the_list_is_bounded() -> None:
    found = compared([0.0] * 100, [1.0] * 100)
    assert (found.only_b, len(found.changed)) == (100, MOST_CHANGED)


def test_holm() -> None:
    """The example of four tests: 0.01 · 4, 0.02 · 3 (both above their predecessors), 0.03 · 2, 0.04 · 1."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    both = adjusted([compared([0] * 8, [1] * 8), compared([0, 1], [1, 0])])
    assert [one.adjusted for one in both] == pytest.approx([2 * 2 / 256, 1])
