"""Rows with choices: how sure the model was and how often it was right, and which positions it preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..input.answers import AnswerKind, choice_of

NUM_BINS = 10
MOST_POSITIONS = 26
"""Positions that are counted apart; choices behind them count at the last one."""
SIGNIFICANT = 0.01
"""A preferred position is reported where chance explains it with less than this probability."""
SMALLEST_EXCESS = 0.02
"""The smallest excess, as a share of the rows, that is reported: of many rows a tiny one is significant too."""


class ChoiceSummary:
    """Counts over the rows of a score job with choices. Error rows do not count.

    A row's confidence is the probability of its best choice among its choices: the softmax of their log-likelihoods.

    Args:
        answer: the column of the part with the answers; None where there is none.
        kind: what that column holds.
        choices: the column with the choices, or the choices of all rows; needed where answers are texts.
    """

    def __init__(
        self, answer: str | None = None, kind: AnswerKind = "index", choices: str | Sequence[str] | None = None
    ) -> None:
        self._answer, self._kind, self._given = answer, kind, choices
        self._bins = np.zeros((NUM_BINS, 3))  # rows, sum of confidences, right rows
        self._positions = np.zeros((MOST_POSITIONS, 3))  # rows that chose it, answers there, expected at random
        self._pairs = np.zeros((MOST_POSITIONS, 2))  # wrong rows that chose it, and whose answer it is
        self._num_answers = 0

    @property
    def passed(self) -> list[str]:
        """The columns of the input that are needed, if the part has them."""
        names = [self._answer, self._given if isinstance(self._given, str) else None]
        return [name for name in names if name is not None]

    def add(self, results: pa.RecordBatch, passed: pa.RecordBatch) -> None:
        """Adds rows.

        Args:
            results: "logprob", "best_choice" and, where the job knows the answers, "correct".
            passed: the same rows with the columns of the input that the part has.
        """
        names = results.schema.names
        if "best_choice" not in names or not pa.types.is_list(results["logprob"].type):
            return
        best = _integers(results["best_choice"])
        logprobs = results["logprob"]
        counts = np.diff(logprobs.offsets.to_numpy())
        known = np.flatnonzero((best >= 0) & (counts > 0) & logprobs.is_valid().to_numpy(zero_copy_only=False))
        best = best[known]
        self._count(0, best)
        for number in np.unique(counts[known]).tolist():
            self._positions[:number, 2] += np.count_nonzero(counts[known] == number) / number
        if "correct" in names:
            right = _integers(results["correct"].cast(pa.int8()))[known]
            self._count_bins(_confidences(logprobs, known), right)
        if self._answer in passed.schema.names:
            self._count_answers(passed, known, best)

    def describe(self) -> dict[str, Any]:
        """Numbers for the report; {} without any row."""
        chosen, answers, expected = self._positions.T
        if not chosen.sum():
            return {}
        used = int(np.flatnonzero(self._positions.any(1))[-1]) + 1
        positions = [
            {
                "chosen": int(chosen[index]),
                "expected_at_random": round(float(expected[index]), 2),
                **({"answers": int(answers[index])} if self._num_answers else {}),
            }
            for index in range(used)
        ]
        rows = self._bins[:, 0]
        means = (self._bins[:, 1:] / np.maximum(rows, 1)[:, None]).round(4).tolist()
        calibration = [
            {"rows": int(number), "confidence": sure, "accuracy": share}
            for number, (sure, share) in zip(rows, means, strict=True)
            if number
        ]
        gaps = sum(one["rows"] * abs(one["confidence"] - one["accuracy"]) for one in calibration)
        error = (
            {"calibration": calibration, "calibration_error": round(gaps / float(rows.sum()), 4)} if calibration else {}
        )
        bias = self._bias()
        return {"positions": positions, **error, **({"position_bias": bias} if bias else {})}

    def _bias(self) -> dict[str, Any]:
        """Returns the position that is chosen too often, and how far chance explains it; {} where it may.

        With answers, rows that choose it wrongly are compared with rows whose answer it is and that choose another one
        (McNemar's test); without, its rows with those of a choice at random. The probability is multiplied by the
        number of positions.
        """
        chosen, answers, expected = self._positions.T
        if self._num_answers:
            rows, known, (more, less) = self._num_answers, answers, self._pairs.T
            excess, spread = more - less, np.sqrt(more + less)
        else:
            rows, known = int(chosen.sum()), expected
            excess, spread = chosen - expected, np.sqrt(expected * (1 - expected / max(rows, 1)))
        position = int(np.argmax(excess))
        z = max(excess[position] - 1, 0) / max(spread[position], 1e-9)
        p_value = min(math.erfc(z / math.sqrt(2)) * np.count_nonzero(expected), 1.0)
        if p_value > SIGNIFICANT or excess[position] < SMALLEST_EXCESS * rows:
            return {}
        return {
            "position": position,
            "rows": rows,
            "chosen": round(float(known[position] + excess[position]) / rows, 4),
            "expected": round(float(known[position]) / rows, 4),
            "compared_with": "answers" if self._num_answers else "random",
            "p_value": float(f"{p_value:.2g}"),
        }

    def _count(self, column: int, positions: Any) -> None:
        found = np.minimum(positions, MOST_POSITIONS - 1)
        self._positions[:, column] += np.bincount(found, minlength=MOST_POSITIONS)

    def _count_bins(self, confidence: Any, right: Any) -> None:
        """Counts rows by confidence; -1 in `right` is a row without an answer."""
        confidence, right = confidence[right >= 0], right[right >= 0]
        bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        np.add.at(self._bins, bins, np.stack([np.ones_like(confidence), confidence, right], 1))

    def _count_answers(self, passed: pa.RecordBatch, known: Any, best: Any) -> None:
        column = passed[self._answer].take(pa.array(known))
        if pa.types.is_integer(column.type):
            answers = _integers(column)
        else:
            choices = self._choices(passed, known)
            pairs = zip(column.to_pylist(), choices, strict=True)
            places = (None if answer is None else choice_of(answer, self._kind, among) for answer, among in pairs)
            answers = np.array([-1 if place is None else place for place in places], np.int64)
        best, answers = best[answers >= 0], answers[answers >= 0]
        self._num_answers += len(answers)
        self._count(1, answers)
        for column, places in enumerate((best, answers)):
            found = np.minimum(places[best != answers], MOST_POSITIONS - 1)
            self._pairs[:, column] += np.bincount(found, minlength=MOST_POSITIONS)

    def _choices(self, passed: pa.RecordBatch, known: Any) -> Sequence[Sequence[Any]]:
        """The choices of rows; where they are not known, places for as many letters as there are."""
        if isinstance(self._given, str) and self._given in passed.schema.names:
            return [row or () for row in passed[self._given].take(pa.array(known)).to_pylist()]
        given = range(MOST_POSITIONS) if self._given is None or isinstance(self._given, str) else self._given
        return [given] * len(known)


def _integers(column: pa.Array) -> Any:
    """A column as an array [n] of int64, with -1 for null."""
    return np.asarray(column.cast(pa.int64()).fill_null(-1))


def _confidences(logprobs: pa.ListArray, rows: Any) -> Any:
    """The softmax of the best choice of each of these rows [n], which have at least one choice each."""
    taken = logprobs.take(pa.array(rows))
    values = np.array(taken.flatten().to_numpy(zero_copy_only=False), np.float64)
    values[np.isnan(values)] = -np.inf
    if not len(rows):
        return np.zeros(0)
    starts = taken.offsets.to_numpy()[:-1] - taken.offsets[0].as_py()
    counts = np.diff(taken.offsets.to_numpy())
    highest = np.maximum.reduceat(values, starts)
    with np.errstate(invalid="ignore"):
        powers = np.exp(values - np.repeat(highest, counts))
    return np.nan_to_num(1 / np.add.reduceat(powers, starts), nan=0.0)
