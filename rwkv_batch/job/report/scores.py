"""The summary of a score job: accuracies, perplexities and bits per byte, of all rows and of groups of rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from ..output.results import best_choice

SAMPLES = 10_000
"""Samples of rows that are resampled. Where there are more rows, rows share samples: memory and time are bounded."""
RESAMPLINGS = 1000
MAX_EXPONENT = 700.0
MOST_GROUPS = 1000
OTHERS = "(other groups)"
"""The group of rows whose own group would be one more than `MOST_GROUPS`."""
ACCURACIES = {"accuracy": "correct", "accuracy_norm": "correct_norm", "accuracy_bytes": "correct_bytes"}
"""Metric → the column that it is the mean of."""
RESULTS = ("logprob", "is_greedy", "num_tokens", "num_bytes", "best_choice", *ACCURACIES.values())
"""The columns that a score job adds and metrics are computed from."""

Kind = Literal["continuation", "choices", "document"]
Metric = dict[str, float]
"""A metric: "value", its standard error "stderr", and "rows", how many rows count."""


class ScoreSummary:
    """Sums over the rows of a score job's parts, from which its metrics are computed.

    A metric is a sum over rows divided by another sum. With choices and answers: `accuracy`, and `accuracy_norm` and
    `accuracy_bytes` by log-likelihood per character and per byte of the choice. With one continuation: `greedy_match`,
    the share of rows whose every token is the most likely one; `row_perplexity`, exp of the mean of -logprob over rows;
    `token_perplexity`, the same over tokens; `bits_per_byte`. With documents: `bits_per_byte`, `compression_percent`
    and `token_perplexity`. Error rows, and rows without an answer, do not count.

    Args:
        columns: "continuation", "choices" and "answer" → the column of the part, where there is one. Only parts that an
            earlier version has made need them.
        kind: what a row scores.
        group_by: the column whose values divide the rows into groups; None for no groups.
    """

    def __init__(self, columns: Mapping[str, str], kind: Kind = "continuation", group_by: str | None = None) -> None:
        self.columns = columns
        self.group_by = group_by
        self._kind = kind
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._num_rows = 0

    @property
    def passed(self) -> list[str]:
        """The columns of parts, besides those of `RESULTS`, that the metrics need if they are there."""
        return [*self.columns.values(), *([] if self.group_by is None else [self.group_by])]

    def add(self, results: pa.RecordBatch, passed: pa.RecordBatch) -> None:
        """Adds rows.

        Args:
            results: those of the columns in `RESULTS` that the part has, under these names.
            passed: the same rows with the columns of the input that the part has.
        """
        rows = self._num_rows + np.arange(results.num_rows)
        self._num_rows += results.num_rows
        given = {part: passed[name] for part, name in self.columns.items() if name in passed.schema.names}
        has_groups = self.group_by is not None and self.group_by in passed.schema.names
        names = _names(passed[self.group_by]) if has_groups else None
        for name, above, below in (
            _choices(results, given) if self._kind == "choices" else _single(results, given, self._kind)
        ):
            known = ~(np.isnan(above) | np.isnan(below))
            sums = self._sums.setdefault(name, np.zeros((SAMPLES, 2)))
            self._counts[name] = self._counts.get(name, 0) + int(np.count_nonzero(known))
            np.add.at(sums, rows[known] % SAMPLES, np.stack([above, below], 1)[known])
            if names is not None:
                self._add_to_groups(name, names[known], above[known], below[known])

    def metrics(self) -> dict[str, Metric]:
        """Returns the metrics of all rows. A metric without any row is left out."""
        found: dict[str, Metric] = {}
        for name, sums in self._sums.items():
            above, below = sums.sum(0)
            if below > 0:
                found[name] = {
                    "value": float(above / below),
                    "stderr": _bootstrap_error(sums),
                    "rows": self._counts[name],
                }
        return self._finished(found)

    def groups(self) -> dict[str, dict[str, Metric]]:
        """Returns the metrics of each group, sorted by the groups' names: group → metric → value, stderr and rows."""
        found = {}
        for group in sorted(self._groups):
            known = {name: _of_moments(moments) for name, moments in self._groups[group].items()}
            found[group] = self._finished({name: metric for name, metric in known.items() if metric is not None})
        return found

    def _add_to_groups(self, name: str, groups: Any, above: Any, below: Any) -> None:
        """Adds the rows of one metric to their groups."""
        unique, inverse = np.unique(groups, return_inverse=True)
        values = np.stack([np.ones_like(above), above, below, above * above, above * below, below * below], 1)
        moments = np.zeros((len(unique), values.shape[1]))
        np.add.at(moments, inverse, values)
        for group, added in zip(unique.tolist(), moments, strict=True):
            if group not in self._groups and len(self._groups) >= MOST_GROUPS:
                group = OTHERS
            own = self._groups.setdefault(group, {})
            own[name] = own.get(name, 0.0) + added

    def _finished(self, found: dict[str, Metric]) -> dict[str, Metric]:
        """Returns the metrics that follow from these ratios, in the order in which they are shown."""
        if "bits_per_byte" in found and self._kind == "document":
            found["compression_percent"] = _scaled(found["bits_per_byte"], 100 / 8)
        for ratio, metric in (("nats_per_row", "row_perplexity"), ("nats_per_token", "token_perplexity")):
            if ratio in found:
                nats = found.pop(ratio)
                perplexity = math.exp(min(nats["value"], MAX_EXPONENT))
                # First order: the standard error of exp(x) is exp(x) times the standard error of x.
                stderr = min(perplexity * nats["stderr"], sys.float_info.max)  # JSON has no infinity
                found[metric] = {**nats, "value": perplexity, "stderr": stderr}
        return found


Ratios = Iterator[tuple[str, Any, Any]]
"""(metric, numerators [n], denominators [n]) for n rows, in float64; NaN where a row does not count."""


def _single(batch: pa.RecordBatch, given: Mapping[str, pa.Array], kind: Kind) -> Ratios:
    """Yields the metrics of rows with one continuation, or with a document."""
    logprob = _numbers(batch["logprob"])
    if kind == "continuation":
        yield "greedy_match", _numbers(batch["is_greedy"].cast(pa.int8())), np.ones(len(logprob))
        yield "nats_per_row", -logprob, np.ones(len(logprob))
    yield "nats_per_token", -logprob, _numbers(batch["num_tokens"])
    if "num_bytes" in batch.schema.names:
        yield "bits_per_byte", -logprob / math.log(2), _numbers(batch["num_bytes"])
    elif "continuation" in given and _is_text(given["continuation"].type):
        yield "bits_per_byte", -logprob / math.log(2), _numbers(pc.binary_length(given["continuation"]))


def _choices(batch: pa.RecordBatch, given: Mapping[str, pa.Array]) -> Ratios:
    """Yields the metrics of rows with choices; none where the answers are not known."""
    if any(column in batch.schema.names for column in ACCURACIES.values()):
        for metric, column in ACCURACIES.items():
            if column in batch.schema.names:
                right = _numbers(batch[column].cast(pa.int8()))
                yield metric, right, np.ones(len(right))
    elif "answer" in given and "best_choice" in batch.schema.names:
        yield from _choices_of_an_earlier_version(batch, given)


def _choices_of_an_earlier_version(batch: pa.RecordBatch, given: Mapping[str, pa.Array]) -> Ratios:
    """Yields the same for parts without columns that say which rows are right: answers are indices."""
    answer, best = _numbers(given["answer"]), _numbers(batch["best_choice"])
    answer[(answer < 0) | (answer >= _numbers(pc.list_value_length(batch["logprob"])))] = np.nan
    is_known = np.where(np.isnan(answer) | np.isnan(best), np.nan, 1.0)
    yield "accuracy", np.where(best == answer, 1.0, 0.0), is_known
    choices = given.get("choices")
    if choices is None or not _is_text(choices.type.value_type):
        return
    rows = [*zip(batch["logprob"].to_pylist(), choices.to_pylist(), strict=True)]
    for metric, norm in (("accuracy_norm", "_norm"), ("accuracy_bytes", "_bytes")):
        found = [math.nan if row[0] is None else best_choice(*row, norm) for row in rows]
        yield metric, np.where(np.asarray(found) == answer, 1.0, 0.0), is_known


def _numbers(column: pa.Array) -> Any:
    """Returns a column as a new array [n] in float64, NaN for null."""
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _names(column: pa.Array) -> Any:
    """Returns the names of the groups of rows: their values as text."""
    return np.array(["null" if value is None else str(value) for value in column.to_pylist()], dtype=object)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _scaled(metric: Metric, factor: float) -> Metric:
    return {**metric, "value": metric["value"] * factor, "stderr": metric["stderr"] * factor}


def _of_moments(moments: Iterable[float]) -> Metric | None:
    """Returns a metric of a group; None where its denominators are 0.

    The standard error is that of a ratio to first order; of a mean, the usual one with n - 1. Of one row it is 0.

    Args:
        moments: of n rows with numerators a and denominators b: n and the sums of a, b, a², ab and b².
    """
    rows, above, below, above2, both, below2 = moments
    if below <= 0:
        return None
    value = above / below
    spread = max(above2 - 2 * value * both + value * value * below2, 0.0)
    stderr = math.sqrt(spread * rows / (rows - 1)) / below if rows > 1 else 0.0
    return {"value": float(value), "stderr": float(stderr), "rows": int(rows)}


def _bootstrap_error(sums: Any) -> float:
    """Returns the standard deviation of the ratio over resampled samples. The random numbers are the same every time.

    Args:
        sums: [SAMPLES, 2], numerator and denominator of each sample's rows.
    """
    sums = sums[sums[:, 1] > 0]
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLINGS):
        above, below = sums[generator.integers(len(sums), size=len(sums))].sum(0)
        ratios.append(above / below)
    return float(np.std(ratios, ddof=1))
