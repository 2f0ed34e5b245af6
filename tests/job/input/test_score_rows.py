"""The rows to score that a job makes of its input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rwkv_batch.job.input.rows import RowKey
from rwkv_batch.rows import ErrorRow, ScoreRow

from ..conftest import Job
from ..prepared import prepared


def rows_of(job: Job) -> list[ScoreRow | ErrorRow]:
    job.settings["task"] = "score"
    ready = prepared(job)
    found: list[Any] = []
    for rows in ready.source.read(0, ready.plan.num_rows, ready.columns.read):
        keys = [RowKey(ready.plan.unit(0), len(found) + i) for i in range(rows.batch.num_rows)]
        found += ready.parser.rows(rows, keys)
    return found


def scored(row: ScoreRow | ErrorRow) -> Any:
    """(context, continuations), or the error code."""
    return (row.context, list(row.continuations)) if isinstance(row, ScoreRow) else row.error.code


QUESTIONS: dict[str, Any] = {
    "question": ["2+2?", "Who?", None],
    "subject": ["maths", "history", "none"],
    "choices": [["3", "4"], ["me", "you", "she"], ["x"]],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [["3", "4"], ["me", "you", "she"]]),
        (" {{ letter }}", [[" A", " B"], [" A", " B", " C"]]),
        (" {{ choice }}", [[" 3", " 4"], [" me", " you", " she"]]),
        ("({{ index + 1 }}) {{ choice }}", [["(1) 3", "(2) 4"], ["(1) me", "(2) you", "(3) she"]]),
        (
            "{{ subject }}: {{ choices[index] }}",
            [["maths: 3", "maths: 4"], [f"history: {c}" for c in ("me", "you", "she")]],
        ),
    ],
)
def test_templates_make_context_and_choices(job: Job, template: str | None, expected: Any) -> None:
    job.input(**QUESTIONS).set(input__template="Q: {{ question }}\nA:", score__choice_template=template)
    contexts = ["Q: 2+2?\nA:", "Q: Who?\nA:"]
    found = rows_of(job)
    assert [scored(row) for row in found] == [*zip(contexts, expected, strict=True), "template_error"]
    assert isinstance(found[2], ErrorRow) and "a null is printed (null in this row: question)" in found[2].error.message


def test_a_template_of_choices_beside_a_column_of_contexts(job: Job) -> None:
    job.input(context=["a", "b", "c", "d"], choices=[["x"], None, [], [None]])
    found = rows_of(job.set(score__choice_template="<{{ choice }}>"))
    assert [scored(row) for row in found] == [("a", ["<x>"]), "null_prompt", "no_choices", "bad_type"]


def test_a_column_named_as_a_name_of_the_choice_template_gives_way(job: Job) -> None:
    job.input(context=["a"], choices=[["x", "y"]], letter=["Z"], index=[7])
    (row,) = rows_of(job.set(score__choice_template="{{ letter }}{{ index }}"))
    assert scored(row) == ("a", ["A0", "B1"])


def test_choices_beyond_z_have_no_letter(job: Job) -> None:
    choices = [f"c{i}" for i in range(27)]
    job.input(context=["a", "b"], choices=[choices[:26], choices])
    found = rows_of(job.set(score__choice_template="{{ letter }}"))
    assert scored(found[0]) == ("a", [chr(65 + i) for i in range(26)])
    assert isinstance(found[1], ErrorRow) and found[1].error.code == "template_error"
    assert "choice_template: UndefinedError: 'letter' is undefined" in found[1].error.message
    by_index = rows_of(job.set(score__choice_template="{{ index }}"))
    assert scored(by_index[1]) == ("b", [str(i) for i in range(27)])


def test_choices_of_all_rows(job: Job) -> None:
    job.input(question=["Is it?", "Was it?"], answer=["yes", "No"])
    job.set(input__template="{{ question }}", score__choices=[" yes", " no"])
    assert [scored(row) for row in rows_of(job)] == [("Is it?", [" yes", " no"]), "bad_type"]
    job.set(score__choice_template="{{ choice }}.", score__answer="index").input(context=["a"], answer=[1])
    (row,) = rows_of(job.set(input__template=None))
    assert scored(row) == ("a", [" yes.", " no."])
    assert isinstance(row, ScoreRow) and row.answer == 1


def test_lambada_as_it_is_published(job: Job) -> None:
    job.input(text=["He went to the house", "one", None])
    job.set(
        input__template="{{ text.split(' ')[:-1] | join(' ') }}",
        score__continuation_template=" {{ text.split(' ')[-1] }}",
    )
    found = [scored(row) for row in rows_of(job)]
    assert found == [("He went to the", [" house"]), ("", [" one"]), "template_error"]


def test_bytes_are_text_in_templates(job: Job) -> None:
    job.input(context=["a", "b"], choices=pa.array([[b"x"], [b"\xff"]], pa.list_(pa.binary())))
    found = rows_of(job.set(score__choice_template="<{{ choice }}>"))
    assert [scored(row) for row in found] == [("a", ["<x>"]), "invalid_text"]


def test_conventions_reach_every_row(job: Job) -> None:
    job.input(context=["a"], continuation=["b"])
    (row,) = rows_of(job.set(score__add_bos_token=True, score__prefix="\n"))
    assert isinstance(row, ScoreRow)
    assert (row.add_bos_token, row.prefix, row.chunk_tokens, row.answer) == (True, "\n", None, None)
    job.settings["score"] = {"chunk_tokens": 9}
    (row,) = rows_of(job.input(text=["abc"]))
    assert isinstance(row, ScoreRow)
    assert (row.add_bos_token, row.prefix, row.chunk_tokens) == (False, None, 9)
    assert scored(row) == ("", ["abc"])


def test_documents_that_are_token_ids(job: Job) -> None:
    found = rows_of(job.input(text=pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64()))))
    assert isinstance(found[0], ScoreRow) and np.array_equal(found[0].continuations[0], [1, 2])
    assert len(found[0].context) == 0 and not isinstance(found[0].context, str)
    assert [scored(row) for row in found[1:]] == ["null_prompt", "bad_type"]


def test_the_context_is_checked_before_the_choices(job: Job) -> None:
    job.input(context=pa.array([None, "a"]), choices=pa.array([[], []], pa.list_(pa.string())))
    assert [scored(row) for row in rows_of(job)] == ["null_prompt", "no_choices"]


def test_the_prompt_in_the_output_is_the_rendered_context(job: Job) -> None:
    job.settings["task"] = "score"
    job.input(**QUESTIONS).set(input__template="Q: {{ question }}", score__choice_template="{{ letter }}")
    assert job.set(output__extra=["prompt"]).run() == 3
    assert [row["prompt"] for row in job.rows()] == ["Q: 2+2?", "Q: Who?", None]
