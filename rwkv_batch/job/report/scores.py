"""The summary of a score job: accuracies, bits per byte and perplexity, each with its bootstrap standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

GROUPS = 10_000
"""Groups of rows that are resampled. Where there are more rows, rows share groups: memory and time are bounded."""
RESAMPLINGS = 1000
MAX_EXPONENT = 700.0
RESULTS = ("logprob", "is_greedy", "num_tokens", "best_choice")
"""The columns that a score job adds and metrics are computed from."""


class ScoreSummary:
    """Sums over the rows of a score job's parts, from which its metrics are computed.

    A metric is a sum over rows divided by another sum. With choices and the index of the right one: `accuracy`, and
    `accuracy_norm` by log-likelihood per byte of the choice's text. With one continuation: `accuracy`, the share of
    rows whose every token is the most likely one, `bits_per_byte` and `token_perplexity`. A metric that needs an input
    column is there only if the parts repeat the column (output.input_columns). Error rows, and rows whose answer is
    none of the choices, do not count.

    Args:
        columns: "continuation", "choices" and "answer" → the column of the part, where there is one.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self._sums: dict[str, Any] = {}
        self._num_rows = 0

    def add(self, results: pa.RecordBatch, passed: pa.RecordBatch) -> None:
        """Adds rows.

        Args:
            results: those of the columns in `RESULTS` that the part has, under these names.
            passed: the same rows with the columns of the input that the part has.
        """
        rows = self._num_rows + np.arange(results.num_rows)
        self._num_rows += results.num_rows
        given = {part: passed[name] for part, name in self.columns.items() if name in passed.schema.names}
        for name, above, below in (
            _choices(results, given) if "best_choice" in results.schema.names else _single(results, given)
        ):
            known = ~(np.isnan(above) | np.isnan(below))
            sums = self._sums.setdefault(name, np.zeros((GROUPS, 2)))
            np.add.at(sums, rows[known] % GROUPS, np.stack([above, below], 1)[known])

    def metrics(self) -> dict[str, dict[str, float]]:
        """Returns the metrics: name → "value" and "stderr". A metric without any row is left out."""
        found = {}
        for name, sums in self._sums.items():
            above, below = sums.sum(0)
            if below > 0:
                found[name] = {"value": float(above / below), "stderr": _bootstrap_error(sums)}
        if "nats_per_token" in found:
            nats = found.pop("nats_per_token")
            perplexity = math.exp(min(nats["value"], MAX_EXPONENT))
            # First order: the standard error of exp(x) is exp(x) times the standard error of x.
            found["token_perplexity"] = {"value": perplexity, "stderr": perplexity * nats["stderr"]}
        return found


Ratios = Iterator[tuple[str, Any, Any]]
"""(metric, numerators [n], denominators [n]) for n rows, in float64; NaN where a row does not count."""


def _single(batch: pa.RecordBatch, given: Mapping[str, pa.Array]) -> Ratios:
    """Yields the metrics of rows with one continuation."""
    logprob = _numbers(batch["logprob"])
    yield "accuracy", _numbers(batch["is_greedy"].cast(pa.int8())), np.ones(len(logprob))
    yield "nats_per_token", -logprob, _numbers(batch["num_tokens"])
    if "continuation" in given and _is_text(given["continuation"].type):
        yield "bits_per_byte", -logprob / math.log(2), _numbers(pc.binary_length(given["continuation"]))


def _choices(batch: pa.RecordBatch, given: Mapping[str, pa.Array]) -> Ratios:
    """Yields the metrics of rows with choices; none where the answers are not known."""
    if "answer" not in given:
        return
    answer, best = _numbers(given["answer"]), _numbers(batch["best_choice"])
    answer[(answer < 0) | (answer >= _numbers(pc.list_value_length(batch["logprob"])))] = np.nan
    is_known = np.where(np.isnan(answer) | np.isnan(best), np.nan, 1.0)
    yield "accuracy", np.where(best == answer, 1.0, 0.0), is_known
    choices = given.get("choices")
    if choices is None or not _is_text(choices.type.value_type):
        return
    columns = zip(batch["logprob"].to_pylist(), choices.to_pylist(), strict=True)
    normalised = [math.nan if logprobs is None else _best_per_byte(logprobs, texts) for logprobs, texts in columns]
    yield "accuracy_norm", np.where(np.asarray(normalised) == answer, 1.0, 0.0), is_known


def _best_per_byte(logprobs: list[float], texts: list[str]) -> int:
    """Returns the index of the choice with the highest log-likelihood per byte of its text."""
    per_byte = [logprob / max(len(text.encode()), 1) for logprob, text in zip(logprobs, texts, strict=True)]
    return max(range(len(per_byte)), key=per_byte.__getitem__)


def _numbers(column: pa.Array) -> Any:
    """Returns a column as a new array [n] in float64, NaN for null."""
    return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _bootstrap_error(sums: Any) -> float:
    """Returns the standard deviation of the ratio over resampled groups. The random numbers are the same every time.

    Args:
        sums: [GROUPS, 2], numerator and denominator of each group's rows.
    """
    sums = sums[sums[:, 1] > 0]
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLINGS):
        above, below = sums[generator.integers(len(sums), size=len(sums))].sum(0)
        ratios.append(above / below)
    return float(np.std(ratios, ddof=1))
