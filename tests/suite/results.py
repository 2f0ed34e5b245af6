"""Results for tests of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rwkv_batch.suite.intervals import share_metric
from rwkv_batch.suite.result import Metric, Samples, TaskResult


def result(
    model: str,
    task: str,
    values: Any,
    *others: Metric,
    metric: str = "accuracy",
    ids: Sequence[str] | None = None,
) -> TaskResult:
    """A result with the values of a metric for each sample, from 0 to 1."""
    array = np.array(values, np.float64)
    samples = Samples([*(ids or map(str, range(len(values))))], {metric: array})
    return TaskResult(model, task, "job", (share_metric(metric, array, len(array)), *others), samples, 2.0, {"n": 1})
