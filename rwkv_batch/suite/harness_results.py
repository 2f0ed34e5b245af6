"""Results of the lm-evaluation-harness as metrics with intervals, and as values of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .result import Metric, Samples

HALF_WIDTH = 1.959963984540054
"""Half of the width of a 95 % interval, in standard errors."""
LOG_LIKELIHOODS = {"perplexity": 1.0, "word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}
"""Metric for which the harness gives the log-likelihood of each sample, alone or with the number of words or bytes that
it is divided by → a number that it is divided by too.
"""


def metrics_of(results: Mapping[str, Any], task: str) -> tuple[Metric, ...]:
    """The metrics of a task or a group. For a tag, and for a group that has none, those of all tasks in it.

    Args:
        results: what `simple_evaluate` returns.
    """
    own = tuple(_metrics(results, task, ""))
    return own or tuple(metric for leaf in leaves_of(results) for metric in _metrics(results, leaf, f"{leaf} "))


def leaves_of(results: Mapping[str, Any]) -> list[str]:
    """The tasks that consist of samples, in the harness's order."""
    return list(results["samples"])


def samples_of(results: Mapping[str, Any]) -> Samples:
    """The value of each metric for each sample. Metrics whose values are no numbers are left out.

    The value for a perplexity, or for bits per byte, is the logarithm that the metric is a mean of: less is better.
    """
    leaves = leaves_of(results)
    ids: dict[str, None] = {}
    found: dict[str, dict[str, float]] = {}
    for leaf in leaves:
        for sample in results["samples"][leaf]:
            key = f"{leaf} " * (len(leaves) > 1) + f"{sample['doc_id']} {sample['doc_hash'][:8]}"
            ids[key] = None
            for metric in sample["metrics"]:
                value = _number(metric, sample[metric])
                if value is not None:
                    found.setdefault(_name(metric, sample["filter"]), {})[key] = value
    values = {
        name: np.array([of_samples.get(key, math.nan) for key in ids], np.float64) for name, of_samples in found.items()
    }
    return Samples(list(ids), values)


def _metrics(results: Mapping[str, Any], name: str, prefix: str) -> Iterator[Metric]:
    scores = results["results"].get(name, {})
    counts = results.get("n-samples", {})
    leaves = [name] if name in counts else leaves_of(results)
    num_samples = sum(int(counts[leaf]["effective"]) for leaf in leaves if leaf in counts)
    for key, value in scores.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(value):
            continue
        error = scores.get(f"{metric}_stderr,{filtered}")
        half = HALF_WIDTH * float(error) if _is_number(error) else None
        yield Metric(
            name=prefix + _name(metric, filtered),
            value=float(value),
            low=None if half is None else float(value) - half,
            high=None if half is None else float(value) + half,
            samples=num_samples,
            higher_is_better=results["higher_is_better"].get(name, {}).get(metric) is not False,
        )


def _name(metric: str, filtered: str) -> str:
    """The name of a metric, with that of the filter of answers, where there is one."""
    return metric if filtered == "none" else f"{metric} {filtered}"


def _number(metric: str, value: Any) -> float | None:
    """The value of a sample as a number."""
    if metric in LOG_LIKELIHOODS:
        total, weight = value if isinstance(value, Sequence) else (value, 1)
        return -float(total) / float(weight) / LOG_LIKELIHOODS[metric] if weight else None
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.bool_ | np.number) and math.isfinite(float(value))
