"""Results of the lm-evaluation-harness as metrics with intervals, and as values of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .intervals import Z, share_metric
from .result import Metric, Samples

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
    return _samples(results, {leaf: f"{leaf} " if len(leaves) > 1 else "" for leaf in leaves})


def _samples(results: Mapping[str, Any], prefixes: Mapping[str, str]) -> Samples:
    """The samples of some tasks.

    Args:
        prefixes: task → what the ids of its samples begin with.
    """
    ids: dict[str, None] = {}
    found: dict[str, dict[str, float]] = {}
    for leaf, prefix in prefixes.items():
        for sample in results["samples"][leaf]:
            key = f"{prefix}{sample['doc_id']} {sample['doc_hash'][:8]}"
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
    """The metrics of one task or group.

    Args:
        prefix: what their names begin with.
    """
    scores = results["results"].get(name, {})
    is_leaf = name in results["samples"]
    values = _samples(results, {name: ""}).values if is_leaf else {}
    counts = results["n-samples"]
    num_samples = sum(int(counts[leaf]["effective"]) for leaf in ([name] if is_leaf else leaves_of(results)))
    for key, value in scores.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not _is_number(value):
            continue
        low, high = _interval(
            float(value), scores.get(f"{metric}_stderr,{filtered}"), values.get(_name(metric, filtered))
        )
        is_better = results["higher_is_better"].get(name, {}).get(metric) is not False
        yield Metric(prefix + _name(metric, filtered), float(value), low, high, num_samples, is_better)


def _interval(value: float, error: Any, values: np.ndarray | None) -> tuple[float | None, float | None]:
    """The 95 % interval of a metric: Wilson's for a share, that of the logarithm for a perplexity, otherwise by the
    standard error.

    Args:
        error: the harness's standard error; no number where it gives none.
        values: those of the samples; None where they are not known.
    """
    if values is not None and len(values) > 1:
        mean = float(values.mean())
        if np.isin(values, (0.0, 1.0)).all() and math.isclose(mean, value, abs_tol=1e-9):
            share = share_metric("", values, len(values))
            return share.low, share.high
        if mean < 700 and math.isclose(math.exp(mean), value, rel_tol=1e-6):
            half = min(Z * float(values.std(ddof=1)) / math.sqrt(len(values)), 700.0)
            return value * math.exp(-half), value * math.exp(half)
    if not _is_number(error):
        return None, None
    half = Z * float(error)
    return value - half if value < 0 else max(value - half, 0.0), value + half


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
