"""Calibration and positions of rows with choices, against a loop over the rows."""

from __future__ import annotations

import math
import random

import pyarrow as pa
import pytest

from rwkv_batch.job.report.choices import ChoiceSummary

LETTERS = "ABCDE"


def test_positions_and_calibration_are_those_of_a_loop_over_the_rows() -> None:
    randoms = random.Random(5)
    logprobs = [[randoms.uniform(-9, 0) for _ in range(randoms.choice((2, 4, 5)))] for _ in range(300)]
    best = [row.index(max(row)) for row in logprobs]
    answers = [randoms.randrange(len(row)) for row in logprobs]
    for index in range(0, 300, 17):  # error rows
        logprobs[index] = best[index] = None
    for index in range(5, 300, 17):  # rows without an answer
        answers[index] = None
    right = [None if None in pair else pair[0] == pair[1] for pair in zip(best, answers, strict=True)]
    results = pa.record_batch({"logprob": logprobs, "best_choice": pa.array(best, pa.int32()), "correct": right})
    passed = pa.record_batch({"answer": [None if place is None else LETTERS[place] for place in answers]})
    summary = ChoiceSummary("answer", "letter")
    for start in range(0, 300, 64):
        summary.add(results.slice(start, 64), passed.slice(start, 64))
    found = summary.describe()

    good = [(row, place) for row, place in zip(logprobs, best, strict=True) if row is not None]
    served = [answer for answer, row in zip(answers, logprobs, strict=True) if row is not None]
    for position, one in enumerate(found["positions"]):
        assert one["chosen"] == sum(place == position for _, place in good)
        assert one["answers"] == served.count(position)
        assert one["expected_at_random"] == pytest.approx(
            sum(1 / len(row) for row, _ in good if position < len(row)), abs=0.01
        )
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, is_right in zip(logprobs, right, strict=True):
        if row is not None and is_right is not None:
            sure = math.exp(max(row)) / sum(map(math.exp, row))
            bins.setdefault(min(int(sure * 10), 9), []).append((sure, is_right))
    expected = [
        {
            "rows": len(rows),
            "confidence": pytest.approx(sum(sure for sure, _ in rows) / len(rows), abs=1e-4),
            "accuracy": pytest.approx(sum(is_right for _, is_right in rows) / len(rows), abs=1e-4),
        }
        for _, rows in sorted(bins.items())
    ]
    assert found["calibration"] == expected


def test_a_part_without_choices_says_nothing() -> None:
    summary = ChoiceSummary()
    summary.add(pa.record_batch({"logprob": [-1.0]}), pa.record_batch({"x": [1]}))
    none = pa.record_batch(
        {"logprob": pa.array([None], pa.list_(pa.float64())), "best_choice": pa.array([None], pa.int32())}
    )
    summary.add(none, none)
    assert summary.describe() == {}


def test_choices_without_a_finite_likelihood_have_no_confidence() -> None:
    rows = {"logprob": [[-math.inf, -math.inf]], "best_choice": pa.array([0], pa.int32()), "correct": [True]}
    summary = ChoiceSummary()
    summary.add(pa.record_batch(rows), pa.record_batch(rows))
    assert summary.describe()["calibration"] == [{"rows": 1, "confidence": 0.0, "accuracy": 1.0}]
