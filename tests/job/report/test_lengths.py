"""Lengths are counted in bounded memory: percentiles against numpy's, bins against a count of the lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rwkv_batch.job.report.lengths import MOST_BINS, PERCENTILES, Lengths


@pytest.fixture(params=["few", "equal", "wide"])
def given(request: pytest.FixtureRequest) -> np.ndarray:
    many = np.random.default_rng(3).lognormal(6, 2, 5000).astype(np.int64)
    return {"few": np.array([0, 0, 1, 7]), "equal": np.full(9, 48), "wide": many}[request.param]


def counted(given: np.ndarray) -> Lengths:
    lengths = Lengths()
    for part in np.array_split(given, 3):
        lengths.add(part)
    return lengths


def test_numbers_are_those_of_all_lengths(given: np.ndarray) -> None:
    found = counted(given).describe()
    exact = {"count": len(given), "smallest": given.min(), "largest": given.max(), "mean": round(given.mean(), 2)}
    assert {name: found[name] for name in exact} == exact
    for percent in PERCENTILES:
        right = np.percentile(given, percent, method="inverted_cdf")
        assert right <= found[f"p{percent}"] <= max(right * (1 + 1 / 64), right)


def test_bins_hold_all_lengths(given: np.ndarray) -> None:
    lengths = counted(given)
    for name, number in lengths.doubling_bins().items():
        low, _, high = name.partition("-")
        assert number == np.count_nonzero((given >= int(low)) & (given <= int(high or low)))
    bins = lengths.equal_bins()
    assert sum(one["count"] for one in bins) == len(given)
    assert len(bins) <= MOST_BINS + 2
    assert bins[0]["from"] <= given.min() and bins[-1]["to"] >= given.max()
    assert all(before["to"] + 1 == after["from"] for before, after in pairwise(bins))


def test_nothing_and_the_longest() -> None:
    assert (Lengths().describe(), Lengths().doubling_bins(), Lengths().equal_bins()) == ({}, {}, [])
    longest = Lengths()
    longest.add([2**32 - 1, 3])
    assert longest.describe()["largest"] == longest.percentile(100) == 2**32 - 1
