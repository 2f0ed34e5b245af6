"""Intervals of metrics, and how they are shown."""

from __future__ import annotations

import math

import pytest

from rwkv_batch.job.report.page_results import interval, interval_text, scores


@pytest.mark.parametrize(("right", "rows"), [(0, 2), (1, 2), (3, 3), (80, 200), (5, 1000)])
def test_the_interval_of_a_share_is_wilsons(right: int, rows: int) -> None:
    """Its ends are the shares p at which the value is 1.96 of p's own standard errors away."""
    value = right / rows
    for end in interval("accuracy", {"value": value, "stderr": 0.0, "rows": rows}):
        if 0.0 < end < 1.0:
            assert abs(value - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / rows), rel=1e-6)
        else:
            assert end == pytest.approx(value)


def test_other_metrics_have_the_normal_approximation() -> None:
    metric = {"value": 5.0, "stderr": 0.5, "rows": 10}
    assert interval("token_perplexity", metric) == pytest.approx((4.02, 5.98))
    assert interval_text("token_perplexity", metric) == "4.02 to 5.98"
    assert interval_text("accuracy", {"value": 0.4, "stderr": 0.035, "rows": 200}) == "33.5 % to 46.9 %"


def test_each_metric_has_its_number_of_rows() -> None:
    metric = {"value": 0.4, "stderr": 0.035, "rows": 200}
    groups = {"column": "c", "groups": {"g": {"accuracy": {**metric, "rows": 2, "value": 1.0}}}}
    found = scores({"scores": {"accuracy": metric}, "score_groups": groups})
    assert found["metrics"].rows == [["accuracy", "40.0 %", "33.5 % to 46.9 %", "3.5 %", "200"]]
    assert found["groups"].rows == [["g", "2", "100.0 % (34.2 % to 100.0 %)"]]
