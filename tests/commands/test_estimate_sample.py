"""The windows of a sample, and the intervals of totals."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_batch.commands.estimate_sample import WINDOWS, Sample, Window, computed_tokens
from rwkv_batch.engine.prefix import plan_prefixes
from rwkv_batch.engine.request import Request
from rwkv_batch.sampling_params import SamplingParams


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Sums of 16 windows out of 100, with rows that resemble their neighbors: 95 % of 400 intervals hold the total."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        sums = random.gamma(4.0, 100.0, 100)
        sample = Sample(12_800, [_window(value) for value in random.choice(sums, WINDOWS, replace=False)])
        found = sample.total("tokens")
        assert found.low < found.value < found.high
        held += found.low <= sums.sum() <= found.high
    assert 0.91 <= held / 400 <= 0.98


def _window(total: float) -> Window:
    window = Window(0, 128)
    window.totals["tokens"] = total  # type: ignore[assignment]
    return window


def test_all_rows_are_no_estimate() -> None:
    found = Sample(256, [_window(3), _window(5)]).total("tokens")
    assert found == (8, 8, 8) and found.is_exact


@pytest.mark.parametrize("share", [True, False])
def test_computed_tokens(share: bool) -> None:
    """By hand: three prompts of 22 tokens that begin with the same 12, two samples of the first, and another prompt."""
    params = SamplingParams(max_tokens=1)
    begin = list(range(1, 13))
    prompts = [begin + [100 * row + i for i in range(10)] for row in (1, 2, 3)] + [[7] * 5]
    rows = [0, 0, 1, 2, 3]
    requests = [
        Request(i, np.array(prompts[row], np.int32), params, row=row, sample=i == 1) for i, row in enumerate(rows)
    ]
    first = 9 + 2  # after the 12 tokens: 9 that both samples share, and the last token of each
    expected = 12 + first + 10 + 10 + 5 if share else 12 + first + 22 + 22 + 5
    assert computed_tokens(plan_prefixes(requests, share)) == expected
