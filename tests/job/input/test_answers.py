"""What the column with the answers of a score job holds, and which choice an answer names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.answers import Answered, choice_of, kind_of_answers

from ..conftest import Job


@pytest.mark.parametrize(
    ("answer", "kind", "expected"),
    [
        ("A", "letter", 0),
        ("c", "letter", 2),
        (" B\n", "letter", 1),
        ("D", "letter", None),
        ("AB", "letter", None),
        ("", "letter", None),
        ("1", "letter", None),
        ("é", "letter", None),
        ("0", "index", 0),
        (" 2 ", "index", 2),
        ("3", "index", None),
        ("-1", "index", None),
        ("1.0", "index", None),
        ("²", "index", None),
        ("٢", "index", None),
        ("9" * 5000, "index", None),
        (1, "index", 1),
        (1.0, "index", 1),
        (1.5, "index", None),
        (float("nan"), "index", None),
        (-1, "index", None),
        (True, "index", None),
        (1, "letter", None),
        (1, "text", None),
        ([1], "index", None),
        ("two", "text", 1),
        ("B", "text", 2),
        ("three", "text", None),
        ("", "text", None),
    ],
)
def test_an_answer_names_a_choice(answer: Any, kind: Any, expected: int | None) -> None:
    assert choice_of(answer, kind, [" one", " two", "B"]) == expected


def test_the_exact_text_comes_first_and_of_equal_texts_the_first() -> None:
    assert choice_of(" x", "text", ["x", " x", " x"]) == 1
    assert choice_of("x ", "text", ["y", " x", "x"]) == 1
    assert choice_of("x", "text", [[1], [2]]) is None


def rows(*pairs: tuple[str, list[str]]) -> list[Answered]:
    return [Answered(10 + index, answer, choices) for index, (answer, choices) in enumerate(pairs)]


FOUR = ["me", "you", "she", "they"]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (rows(("A", FOUR), ("d", FOUR)), "letter"),
        (rows(("1", FOUR), ("3", FOUR)), "index"),
        (rows(("me", FOUR), ("they", FOUR)), "text"),
        (rows(("A", ["A", "B"]), ("B", ["A", "B"])), "text"),
        (rows(("0", ["0", "1"]), ("1", ["0", "1"])), "text"),
        (rows(("A", FOUR), ("B", FOUR), ("nonsense", FOUR), ("7", FOUR)), "letter"),
        (rows(("A", FOUR), ("B", FOUR), ("A", ["B", "A"])), "letter"),
        (rows(("me", FOUR), ("A", ["B", "A"])), "text"),
    ],
)
def test_a_column_of_texts_has_one_kind(known: list[Answered], expected: str) -> None:
    assert kind_of_answers("answer", known) == expected


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            rows(("A", ["A", "B"]), ("B", ["B", "A"])),
            "score.answer: got auto, expected text or letter: in row 11 the answer 'B' of the column 'answer' is "
            "choice 0 as text and choice 1 as letter",
        ),
        (rows(("1", ["1", "2"])), "score.answer: got auto, expected text or index: in row 10 the answer '1'"),
        (
            rows(("E", FOUR), ("them", FOUR)),
            "input.columns.answer: the column 'answer' holds 'E' in row 10, which has 4 choices; expected the index, "
            "the letter or the text of a choice",
        ),
    ],
)
def test_what_cannot_be_decided_is_refused(known: list[Answered], message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        kind_of_answers("answer", known)
    assert str(refused.value).startswith(message)


def score(job: Job, answer: Any, **more: Any) -> Job:
    job.settings["task"] = "score"
    choices = more.pop("choices", [["x", "yy"]] * len(answer))
    return job.input(context=["c"] * len(answer), choices=choices, answer=answer, **more)


def right(job: Job) -> list[int | None]:
    """The right choice of each row, from `correct` and `best_choice` of rows with two choices; -1 for an error row."""
    found: list[int | None] = []
    for row in job.rows():
        if row["status"] == "error":
            assert row["error_code"] == "bad_type"
            found.append(-1)
        else:
            best, correct = row["best_choice"], row["correct"]
            found.append(None if correct is None else best if correct else 1 - best)
    return found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([0, 1, None, 2, -1], [0, 1, None, -1, -1]),
        (pa.array([0, 1, None], pa.uint8()), [0, 1, None]),
        ([0.0, 1.0, None, 0.5], [0, 1, None, -1]),
        (["A", "b", None, "C"], [0, 1, None, -1]),
        (["x", "yy", None, "z"], [0, 1, None, -1]),
        (["0", "1", None, "2"], [0, 1, None, -1]),
        (pa.array(["A", "B", None]).dictionary_encode(), [0, 1, None]),
        (pa.array(["A", "B"], pa.large_string()), [0, 1]),
    ],
)
def test_answers_of_a_job(job: Job, answer: Any, expected: list[int | None]) -> None:
    assert score(job, answer).run() == (3 if -1 in expected else 0)
    assert right(job) == expected


def test_the_error_of_an_answer_says_what_is_wrong(job: Job) -> None:
    assert score(job, ["A", "Z"]).run() == 3
    error = job.rows()[1]["error"]
    assert error == "the column 'answer' holds 'Z', expected the letter of a choice; the row has 2"


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        (
            [[0]],
            {},
            "column 'answer' is list<element: int64>, expected int or string: the index, letter or text",
        ),
        ([True], {}, "column 'answer' is bool, expected int or string"),
        (["Z"], {}, "the column 'answer' holds 'Z' in row 0, which has 2 choices"),
        ([0], {"answer": "letter"}, "score.answer: got letter, expected index: the column 'answer' is int64"),
        ([0], {"answer": "word"}, "score.answer: got 'word', expected auto, index, letter or text"),
        ([None] * 600 + ["A"], {}, "has no answer in the first 512 rows; set score.answer to index, letter or text"),
    ],
)
def test_answers_that_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str], answer: Any, settings: Any, message: str
) -> None:
    score(job, answer).settings["score"] = settings
    assert job.run() == 2
    assert message in capsys.readouterr().err
    assert not job.output.exists()


@pytest.mark.parametrize(
    ("answer", "kind", "expected"),
    [
        (["B", "A"], "letter", [1, 0]),
        (["B", "A"], "text", [0, 1]),
        (["1", "0"], "index", [1, 0]),
        ([1, 0], "index", [1, 0]),
        ([None] * 600 + ["A"], "letter", [None] * 600 + [0]),
    ],
)
def test_the_kind_of_answers_can_be_said(job: Job, answer: Any, kind: str, expected: list[int]) -> None:
    score(job, answer, choices=[["B", "A"]] * len(answer)).settings["score"] = {"answer": kind}
    assert job.run() == 0
    assert right(job) == expected


def test_a_column_of_nulls_is_no_answer(job: Job) -> None:
    assert score(job, pa.nulls(3)).run() == 0
    assert "correct" not in job.table().column_names
    score(job, pa.array([None, None], pa.string())).set(output__path=str(job.folder / "texts"))
    assert job.run() == 0
    assert right(job) == [None, None]
    kinds = [("context", pa.string()), ("choices", pa.list_(pa.string())), ("answer", pa.string())]
    job.input(**{name: pa.array([], kind) for name, kind in kinds}).set(output__path=str(job.folder / "empty"))
    assert job.run() == 0


def test_json_lines_may_mix_kinds_of_answers(job: Job) -> None:
    """Then the column holds JSON text. Its first rows decide what texts are."""
    job.settings["task"] = "score"
    answers = ['"A"', '"b"', "1", "null", '"C"', "[0]"]
    job.lines(*(f'{{"context": "c", "choices": ["x", "yy"], "answer": {answer}}}' for answer in answers))
    assert job.run() == 3
    assert right(job) == [0, 1, -1, None, -1, -1]


def test_answers_without_choices_are_not_read(job: Job) -> None:
    job.settings["task"] = "score"
    assert job.input(context=["a"], continuation=["b"], answer=[[1]]).run() == 0
    assert "correct" not in job.table().column_names


def test_another_column_may_hold_the_answers(job: Job) -> None:
    job.settings["task"] = "score"
    job.input(context=["a", "b"], choices=[["x", "yy"]] * 2, label=["B", "A"], answer=[[1], [2]])
    assert job.set(input__columns={"answer": "label"}).run() == 0
    assert right(job) == [1, 0]
