"""Two models at the same task, sample by sample: a paired test, and the samples that have changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..commands.paired import compare_means, mcnemar
from .result import Samples, TaskResult
from .score_results import NATS

MOST_CHANGED = 20
"""Samples that are listed of a task and a pair of models."""
SIGN_FLIPS = 10_000
MOST_SIZES = 500
"""Sizes of differences up to which signs are drawn. Beyond it the normal approximation is as good."""


@dataclass(frozen=True)
class Changed:
    """A sample whose values differ.

    Args:
        identity: its id.
        a, b: the values.
    """

    identity: str
    a: float
    b: float


@dataclass(frozen=True)
class Difference:
    """Two models at the same samples of a task.

    Args:
        task, metric, a, b: the names of the task, the metric and the models.
        samples: that both have.
        mean_a, mean_b: of the metric over them.
        low, high: 95 % interval of b - a.
        p_value: how likely a difference of this size is where there is none.
        adjusted: the same, for all differences that are tested together.
        only_a, only_b: samples at which a, or b, is better.
        changed: the first samples that differ, those that differ most first.
    """

    task: str
    metric: str
    a: str
    b: str
    samples: int
    mean_a: float
    mean_b: float
    low: float
    high: float
    p_value: float
    adjusted: float
    only_a: int
    only_b: int
    changed: tuple[Changed, ...]


def difference(a: TaskResult, b: TaskResult) -> Difference | None:
    """The difference between two models at a task; None where they have no samples in common."""
    metric = _metric(a, b)
    if metric is None or a.samples is None or b.samples is None:
        return None
    own, other = _joined(a.samples, b.samples)
    values_a, values_b = a.samples.values[metric][own], b.samples.values[metric][other]
    known = ~(np.isnan(values_a) | np.isnan(values_b))
    if not known.any():
        return None
    values_a, values_b = values_a[known], values_b[known]
    sign = 1 if _is_higher_better(a, metric) else -1
    better = sign * (values_b - values_a)
    only_a, only_b = int((better < 0).sum()), int((better > 0).sum())
    is_binary = np.isin(values_a, (0, 1)).all() and np.isin(values_b, (0, 1)).all()
    p_value = mcnemar(only_a, only_b) if is_binary else _sign_flip(values_b - values_a)
    means = compare_means(values_a, values_b)
    order = np.flatnonzero(better)
    order = order[np.argsort(-np.abs(better[order]), kind="stable")][:MOST_CHANGED]
    ids = [a.samples.ids[place] for place in own[known][order]]
    changed = [
        Changed(identity, float(values_a[one]), float(values_b[one])) for identity, one in zip(ids, order, strict=True)
    ]
    return Difference(
        task=a.task,
        metric=metric,
        a=a.model,
        b=b.model,
        samples=means.rows,
        mean_a=means.a,
        mean_b=means.b,
        low=means.low,
        high=means.high,
        p_value=p_value,
        adjusted=p_value,
        only_a=only_a,
        only_b=only_b,
        changed=tuple(changed),
    )


def adjusted(found: Sequence[Difference]) -> list[Difference]:
    """The differences with p-values for all of them together, by Holm's method."""
    values = holm([one.p_value for one in found])
    return [replace(one, adjusted=value) for one, value in zip(found, values, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of tests that are made together: the probability of any false one stays below the level."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = largest
    return found


def _metric(a: TaskResult, b: TaskResult) -> str | None:
    """The metric by which two results are compared: the first that both know sample by sample.

    Of those after the first only metrics count whose higher values are better: shares of errors and lengths do not.
    """
    names = [*(one.name for index, one in enumerate(a.metrics) if not index or one.higher_is_better), NATS]
    return next((name for name in names if all(_has(one, name) for one in (a, b))), None)


def _has(result: TaskResult, name: str) -> bool:
    return result.samples is not None and name in result.samples.values


def _is_higher_better(result: TaskResult, name: str) -> bool:
    return next((one.higher_is_better for one in result.metrics if one.name == name), False)


def _joined(a: Samples, b: Samples) -> tuple[Any, Any]:
    """The places [n] in a and in b of the samples that both have: those with the same id; with equal ids, in order."""
    place = {identity: index for index, identity in enumerate(_numbered(a.ids))}
    pairs = [(place[identity], index) for index, identity in enumerate(_numbered(b.ids)) if identity in place]
    found = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _numbered(ids: Iterable[str]) -> list[tuple[str, int]]:
    """Each id with how often it has come before."""
    seen: dict[str, int] = {}
    found = []
    for identity in ids:
        seen[identity] = seen.get(identity, -1) + 1
        found.append((identity, seen[identity]))
    return found


def _sign_flip(differences: Any) -> float:
    """The p-value of a mean difference, two-sided: how often random signs of the differences make a larger one."""
    sizes, counts = np.unique(np.round(np.abs(differences), 12), return_counts=True)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    if not len(sizes):
        return 1.0
    total = abs(float(differences.sum()))
    if len(sizes) > MOST_SIZES:
        error = float(differences.std(ddof=1)) * math.sqrt(len(differences))
        return math.erfc(total / error / math.sqrt(2))
    drawn = (2 * np.random.default_rng(0).binomial(counts, 0.5, (SIGN_FLIPS, len(counts))) - counts) @ sizes
    as_large = int((np.abs(drawn) >= total * (1 - 1e-9)).sum())
    return (as_large + 1) / (SIGN_FLIPS + 1)


def shown_p(value: float) -> str:
    """A p-value in words."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
