"""pass@k against all subsets, and majorities by hand."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from rwkv_batch.suite.votes import majority, pass_at


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples: int) -> None:
    for right in range(samples + 1):
        flags = [place < right for place in range(samples)]
        for k in range(1, samples + 1):
            subsets = [any(one) for one in combinations(flags, k)]
            assert pass_at(k, samples, right) == pytest.approx(float(Fraction(sum(subsets), len(subsets))), abs=1e-15)


def test_pass_at_k_of_many_samples() -> None:
    assert pass_at(100, 1000, 1) == pytest.approx(0.1)
    assert pass_at(1, 1000, 250) == pytest.approx(0.25)
    assert pass_at(1000, 1000, 0) == 0


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["a", "b", "b"], "b"),
        (["a", "b"], "a"),
        (["b", "a", "a", "b", "c"], "b"),
        (["c", "b", "a", "a", "b"], "b"),
        ([None, None, "a"], "a"),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority(answers: list[str | None], found: str | None) -> None:
    assert majority(answers) == found
