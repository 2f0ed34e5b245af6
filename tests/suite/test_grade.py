"""Grading of finished jobs: every metric of a few questions by hand, and a job that this package has run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from job.conftest import Job

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.suite.extract import BOXED
from rwkv_batch.suite.grade import grade
from rwkv_batch.suite.grade_section import GradeSection, problems_of
from rwkv_batch.suite.result import Metric

from .finished import error_of, finished_job, samples_of


def section(**settings: Any) -> GradeSection:
    return GradeSection.model_validate({"answer": "answer", **settings})


def values(found: tuple[Metric, ...]) -> dict[str, float]:
    return {one.name: one.value for one in found}


def test_every_metric_by_hand(tmp_path: Path) -> None:
    """Six questions with four samples: easy, a tie, a wrong majority, no answers, an error, and no right answer."""
    out = finished_job(
        tmp_path / "out",
        [
            *samples_of("easy", "2", "#### 2", "#### 2", "#### 2", "#### 3"),
            *samples_of("tie", "2", "#### 3", "#### 2", "#### 2", "#### 3"),
            *samples_of("hard", "2", "#### 2", "#### 3", "#### 3", "none"),
            *samples_of("lost", "2", "no", "no", "no", "no", reason="length"),
            *error_of("failed", "2"),
            *samples_of("unknown", None, "#### 2", "#### 2", "#### 2", "no"),
        ],
    )
    metrics, samples = grade(out, section(extract=["#### (.*)"], k=[1, 2, 4]))
    assert samples.ids == ["easy", "tie", "hard", "lost", "failed", "unknown"]
    nan = pytest.approx(math.nan, nan_ok=True)
    by_hand: dict[str, list[Any]] = {
        "avg@4": [3 / 4, 2 / 4, 1 / 4, 0, nan, nan],
        "maj@1": [1, 0, 1, 0, nan, nan],
        "pass@1": [3 / 4, 2 / 4, 1 / 4, 0, nan, nan],
        "maj@2": [1, 0, 1, 0, nan, nan],  # a tie goes to the answer that came first
        "pass@2": [1, 5 / 6, 3 / 6, 0, nan, nan],
        "maj@4": [1, 0, 0, 0, nan, nan],
        "pass@4": [1, 1, 1, 0, nan, nan],
        "no_answer": [0, 0, 1 / 4, 1, nan, 1 / 4],
        "truncated": [0, 0, 0, 1, nan, 0],
        "completion_tokens": [6, 6, (18 + 4) / 4, 2, nan, (18 + 2) / 4],
        "errors": [0, 0, 0, 0, 1, 0],
    }
    assert [one.name for one in metrics] == list(by_hand) == list(samples.values)
    for name, expected in by_hand.items():
        assert samples.values[name].tolist() == [pytest.approx(one) for one in expected], name
    means = values(metrics)
    assert means["avg@4"] == pytest.approx(6 / 16) and means["errors"] == pytest.approx(1 / 6)
    counts = {one.name: one.samples for one in metrics}
    assert (counts["avg@4"], counts["no_answer"], counts["errors"]) == (4, 5, 6)
    assert {one.name for one in metrics if one.higher_is_better} == {name for name in by_hand if "@" in name}
    assert all(one.low is not None and one.low <= one.value <= (one.high or 0) for one in metrics)


def test_one_sample(tmp_path: Path) -> None:
    out = finished_job(tmp_path / "out", [*samples_of(7, "a", "a"), *samples_of(8, "a", "b")])
    metrics, samples = grade(out, section())
    assert [one.name for one in metrics] == ["accuracy", "no_answer", "truncated", "completion_tokens", "errors"]
    assert (metrics[0].value, samples.ids) == (0.5, ["7", "8"])


def test_real_answers(tmp_path: Path) -> None:
    """Data as data sets have them: reasoning in the answer, numbers, letters, indices, lists."""
    gsm8k = finished_job(
        tmp_path / "gsm8k",
        [
            *samples_of(0, "16 - 3 = 13\n#### 1,234", "So the answer is 1,234."),
            *samples_of(1, "9 * 2 = 18\n#### 18", "The answer is $18.00. The answer is 7."),
            *samples_of(2, "#### 5", "<think>The answer is 5</think>The answer is -5"),
        ],
    )
    found, _ = grade(
        gsm8k, section(extract=[r"answer is \$?(-?[\d,.]+)"], answer_extract=["#### (.*)"], normalize=["number"])
    )
    assert values(found)["accuracy"] == pytest.approx(2 / 3)
    letters = finished_job(
        tmp_path / "mmlu",
        [*samples_of(0, 1, "(B)"), *samples_of(1, 3, "D. Rome"), *samples_of(2, 0, "B"), *samples_of(3, 0, "a.")],
    )
    assert values(grade(letters, section(normalize=["letter"]))[0])["accuracy"] == 3 / 4
    lists = finished_job(
        tmp_path / "trivia",
        [*samples_of(0, ["Paris", "City of Paris"], "the city of Paris"), *samples_of(1, ["Rome", None], "Milan")],
    )
    assert values(grade(lists, section(normalize=["lower", "articles"]))[0])["accuracy"] == 0.5
    boxed = finished_job(tmp_path / "math", samples_of(0, r"\frac12", r"thus $\boxed{\frac{1}{2}}$"))
    assert values(grade(boxed, section(extract=[BOXED], normalize=["latex"]))[0])["accuracy"] == 1
    truth = finished_job(tmp_path / "bool", [*samples_of(0, True, "True"), *samples_of(1, False, "yes")])
    assert values(grade(truth, section(normalize=["lower"]))[0])["accuracy"] == 0.5


def test_thoughts(tmp_path: Path) -> None:
    """A thought that the prompt has begun, and the model has not ended, has no answer."""
    rows = [*samples_of(0, "4", "it is 4"), *samples_of(1, "4", "3?</think>4"), *samples_of(2, "4", "<think>4")]
    opened = finished_job(tmp_path / "open", rows, chat__think="open")
    closed = finished_job(tmp_path / "none", rows, chat__think="none")
    pattern = [r"\d"]
    assert grade(opened, section(extract=pattern))[1].values["no_answer"].tolist() == [1, 0, 1]
    assert grade(closed, section(extract=pattern))[1].values["no_answer"].tolist() == [0, 0, 1]
    assert grade(closed, section(extract=pattern))[1].values["accuracy"].tolist() == [1, 1, 0]
    assert grade(closed, section(extract=pattern, after_thought=False))[1].values["accuracy"].tolist() == [1, 0, 1]


def test_renamed_columns(tmp_path: Path) -> None:
    rows = [{**one, "rating": one.pop("completion")} for one in samples_of(0, "4", "4")]
    out = finished_job(tmp_path / "out", rows, columns={"completion": "rating"})
    assert values(grade(out, section())[0])["accuracy"] == 1


def test_a_job_that_was_run(job: Job) -> None:
    """Completions of the fake engine, of which every second row's is the right answer."""
    job.input(prompt=[f"p{row}" for row in range(6)], answer=[""] * 6).set(sampling__n=3)
    assert job.run() == 0
    rows = job.rows()
    first = [row["completion"] for row in rows if row["sample_index"] == 0]
    answers = [text if row % 2 else f"{text}, or not" for row, text in enumerate(first)]
    job.input(prompt=[f"p{row}" for row in range(6)], answer=answers).set(output__path=str(job.folder / "again"))
    assert job.run() == 0
    metrics, samples = grade(str(job.output), section(k=[1]))
    assert samples.ids == [str(row) for row in range(6)]
    assert values(metrics)["maj@1"] == 0.5
    expected = [
        sum(one["completion"].strip() == one["answer"].strip() for one in job.rows()[3 * row : 3 * row + 3]) / 3
        for row in range(6)
    ]
    assert samples.values["avg@3"].tolist() == pytest.approx(expected)
    assert values(metrics)["completion_tokens"] == pytest.approx(
        sum(one["completion_tokens"] for one in job.rows()) / 18
    )


def test_what_cannot_be_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished_job(tmp_path / "out", samples_of("a", "4", "a" * 5000))
    with pytest.raises(ConfigurationError, match=r"no column 'anwser' \(did you mean 'answer'\?\)"):
        grade(out, section(answer="anwser"))
    with pytest.raises(ConfigurationError, match=r"grade\.k: got 3, expected at most 1"):
        grade(out, section(k=[1, 3]))
    monkeypatch.setattr("rwkv_batch.suite.extract.SEARCH_SECONDS", 0.02)
    with pytest.raises(ConfigurationError, match=r"grade\.extract: row 'a': the regular expression"):
        grade(out, section(extract=["(a|aa)+$b"]))
    nulls = finished_job(tmp_path / "nulls", samples_of("a", None, "4"))
    with pytest.raises(ConfigurationError, match="'answer' holds null in every row"):
        grade(nulls, section())
    structs = finished_job(tmp_path / "structs", samples_of("a", {"text": "4"}, "4"))
    with pytest.raises(ConfigurationError, match="in row 0, expected text, a number, or a list of these"):
        grade(structs, section())
    scores = finished_job(tmp_path / "scores", [{"logprob": -1.0, "status": "ok"}], task="score")
    with pytest.raises(ConfigurationError, match="got a job with task score, expected generate"):
        grade(scores, section())


def test_only_errors(tmp_path: Path) -> None:
    metrics, _ = grade(
        finished_job(tmp_path / "out", error_of("a", "4") + error_of("b", "4")), section(answer="answer")
    )
    assert math.isnan(values(metrics)["accuracy"]) and values(metrics)["errors"] == 1


def test_problems_are_found_before_the_job_runs(job: Job) -> None:
    from rwkv_batch.job.load import load_job

    job.input(prompt=["a"], answer=["b"]).set(sampling__n=4, output__input_columns=["id", "answers"])
    wrong = section(extract=["fine", "(", BOXED], answer_extract=["["], k=[4, 5])
    found = dict(problems_of(wrong, load_job(job.write())))
    assert list(found) == ["grade.answer_extract[0]", "grade.extract[1]", "grade.answer", "grade.k"]
    assert found["grade.extract[1]"] == "got '(', expected a regular expression: missing ) at its end"
    assert found["grade.answer"].endswith("output.input_columns has (did you mean 'answers'?)")
    assert found["grade.k"] == "got 5, expected at most sampling.n, which is 4"
    job.set(output__input_columns="all")
    assert not [*problems_of(section(k=[4]), load_job(job.write()))]
    assert not [*problems_of(section(), load_job(job.write()), ["answer", "prompt"])]
    assert [where for where, _ in problems_of(section(), load_job(job.write()), ["prompt"])] == ["grade.answer"]
    job.settings["task"] = "score"
    del job.settings["sampling"]
    assert [where for where, _ in problems_of(section(), load_job(job.write()))] == ["grade"]
