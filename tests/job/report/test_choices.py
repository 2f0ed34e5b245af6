"""Calibration and positions of rows with choices, against a loop over the rows."""

from __future__ import annotations

import math
import random
from typing import Any

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


def summary_of(best: list[int], answers: list[int] | None, num_choices: int = 4) -> dict[str, Any]:
    logprobs = [[0.0 if place == chosen else -1.0 for place in range(num_choices)] for chosen in best]
    results: dict[str, Any] = {"logprob": logprobs, "best_choice": pa.array(best, pa.int32())}
    if answers is not None:
        results["correct"] = [chosen == answer for chosen, answer in zip(best, answers, strict=True)]
    passed = pa.record_batch({"answer": pa.array(answers or [None] * len(best), pa.int64())})
    summary = ChoiceSummary("answer" if answers is not None else None)
    summary.add(pa.record_batch(results), passed)
    return summary.describe()


def tail(least: int, count: int, share: float) -> float:
    """How likely at least so many of `count` are, each with the probability `share`."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(least, count + 1))


def test_a_position_that_is_chosen_too_often_is_reported() -> None:
    """Against McNemar's exact test, times the number of positions; what is compared is the normal approximation."""
    answers = [index % 4 for index in range(200)]
    best = [2 if index % 11 == 0 else answer for index, answer in enumerate(answers)]
    found = summary_of(best, answers)["position_bias"]
    more = sum(b == 2 != a for a, b in zip(answers, best, strict=True))
    less = sum(a == 2 != b for a, b in zip(answers, best, strict=True))
    exact = 4 * 2 * tail(more, more + less, 0.5)
    assert exact / 6 < found["p_value"] < 6 * exact < 0.01
    assert (found["position"], found["rows"], found["compared_with"]) == (2, 200, "answers")
    assert (found["chosen"], found["expected"]) == (best.count(2) / 200, 0.25)


def test_without_answers_a_position_is_compared_with_a_choice_at_random() -> None:
    found = summary_of([0] * 60 + [1] * 40 + [2] * 50 + [3] * 50, None)
    assert "position_bias" not in found
    found = summary_of([0] * 80 + [1] * 40 + [2] * 40 + [3] * 40, None)["position_bias"]
    exact = 4 * 2 * tail(80, 200, 0.25)
    assert exact / 6 < found["p_value"] < 6 * exact < 0.01
    assert (found["position"], found["chosen"], found["expected"]) == (0, 0.4, 0.25)
    assert found["compared_with"] == "random"


def test_chance_is_no_bias() -> None:
    """Of 300 models that choose at random, about one in a hundred or less is said to prefer a position."""
    randoms = random.Random(3)
    answers = [randoms.randrange(4) for _ in range(120)]
    found = [summary_of([randoms.randrange(4) for _ in range(120)], answers) for _ in range(300)]
    assert sum("position_bias" in one for one in found) <= 6


def test_a_model_that_is_right_has_no_bias_though_answers_have_one() -> None:
    answers = [1] * 150 + [0, 2, 3] * 20
    assert "position_bias" not in summary_of(answers, answers)


def test_a_tiny_excess_is_no_bias_however_many_rows_there_are() -> None:
    answers = [index % 4 for index in range(40_000)]
    best = [1 if index % 100 == 0 else answer for index, answer in enumerate(answers)]
    assert "position_bias" not in summary_of(best, answers)
