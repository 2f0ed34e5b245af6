"""What a score job scores: found by its columns and settings, and refused where these contradict each other."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rwkv_batch.job.input.columns import Columns, bind_columns, expected_kinds
from rwkv_batch.job.input.reader import open_input
from rwkv_batch.job.load import load_job

from ..conftest import Job

CHOICES = [["x", "y"]]


def bound(job: Job, score: dict[str, Any], **columns: Any) -> Columns:
    job.settings["task"] = "score"
    job.settings["score"] = score
    config = load_job(job.input(**columns).write())
    return bind_columns(config, open_input(config.input.path, "auto", expected_kinds(config)))


@pytest.mark.parametrize(
    ("columns", "score", "settings", "kind", "roles"),
    [
        ({"context": ["a"], "continuation": ["b"]}, {}, {}, "continuation", ["context", "continuation"]),
        ({"context": ["a"], "choices": CHOICES}, {}, {}, "choices", ["context", "choices"]),
        ({"text": ["a"]}, {}, {}, "document", ["text"]),
        ({"text": [[1, 2]]}, {"chunk_tokens": 2}, {}, "document", ["text"]),
        ({"continuation": ["a"]}, {}, {"columns": {"context": None}}, "document", ["continuation"]),
        ({"text": ["a"], "context": ["b"], "choices": CHOICES}, {}, {}, "choices", ["context", "choices"]),
        ({"text": [1], "context": ["b"], "continuation": ["c"]}, {}, {}, "continuation", ["context", "continuation"]),
        ({"body": ["a"], "context": ["b"]}, {}, {"columns": {"text": "body"}}, "document", ["text"]),
        ({"q": ["a"], "choices": CHOICES}, {}, {"template": "{{ q }}"}, "choices", ["choices"]),
        ({"q": ["a"], "context": [1], "choices": CHOICES}, {}, {"template": "{{ q }}"}, "choices", ["choices"]),
        ({"q": ["a"], "text": ["b"]}, {"choices": ["x"]}, {"template": "{{ q }}"}, "choices", []),
        ({"context": ["a"]}, {"choices": ["x"]}, {}, "choices", ["context"]),
        ({"context": ["a"], "choices": ["an essay"]}, {"choices": ["x"]}, {}, "choices", ["context"]),
        ({"context": ["a"]}, {"continuation_template": "{{ context }}!"}, {}, "continuation", ["context"]),
        (
            {"text": ["a b"]},
            {"continuation_template": " {{ text.split()[-1] }}"},
            {"template": "{{ text.split()[0] }}"},
            "continuation",
            [],
        ),
    ],
)
def test_what_is_scored(job: Job, columns: Any, score: Any, settings: Any, kind: str, roles: list[str]) -> None:
    job.set(**{f"input__{name}": value for name, value in settings.items()})
    found = bound(job, score, **columns)
    assert found.scored is not None
    assert (found.scored.kind, list(found.roles)) == (kind, roles)
    assert job.run() == 0


WANTED = "task score needs the column context, and either continuation or choices"


@pytest.mark.parametrize(
    ("columns", "score", "settings", "message"),
    [
        ({"text": ["a"], "context": ["b"]}, {}, {}, WANTED),
        ({"choices": CHOICES}, {}, {}, WANTED),
        ({"choices": CHOICES, "context": ["a"], "continuation": ["b"]}, {}, {}, WANTED),
        ({"q": ["a"]}, {}, {"template": "{{ q }}"}, WANTED),
        ({"q": ["a"]}, {"choices": ["x"]}, {}, WANTED),
        ({"q": ["a"], "choices": CHOICES}, {}, {"columns": {"context": None}}, WANTED),
        (
            {"context": ["a"], "c": CHOICES},
            {"choices": ["x"]},
            {"columns": {"choices": "c"}},
            "score.choices: got a value beside input.columns.choices, expected one of them",
        ),
        (
            {"context": ["a"], "t": ["b"]},
            {"continuation_template": "{{ t }}"},
            {"columns": {"text": "t"}},
            "score.continuation_template: got a value beside input.columns.text, expected one of them",
        ),
        (
            {"context": ["a"]},
            {"choices": ["x"], "continuation_template": "{{ context }}"},
            {},
            "score.choices: got choices beside score.continuation_template, expected one of them",
        ),
        (
            {"t": ["a"]},
            {},
            {"columns": {"text": "t"}, "template": "{{ t }}"},
            "input.columns.text: got a column beside a context, expected one of them",
        ),
        (
            {"context": ["a"], "continuation": ["b"]},
            {"choice_template": "{{ choice }}"},
            {},
            "score.choice_template: got a template, expected null: the job has no choices",
        ),
        (
            {"context": ["a"], "continuation": ["b"]},
            {"chunk_tokens": 5},
            {},
            "score.chunk_tokens: got 5, expected null: it is for whole documents (the column text)",
        ),
        (
            {"context": ["a"], "continuation": ["b"]},
            {"answer": "text"},
            {},
            "score.answer: got text, expected auto: the job has no choices",
        ),
        (
            {"context": ["a"], "continuation": ["b"]},
            {"group_by": "subject"},
            {},
            "score.group_by: the input has no column 'subject'; it has context, continuation",
        ),
        (
            {"context": ["a"], "choices": CHOICES},
            {"choice_template": "{{ lettr }}"},
            {},
            "score.choice_template: the input has no column 'lettr' (did you mean 'letter'?)",
        ),
        (
            {"context": ["a"], "choices": CHOICES},
            {"choice_template": "{{ letter"},
            {},
            "score.choice_template, line 1: ",
        ),
        (
            {"context": ["a"]},
            {"continuation_template": "{{ [1, 2] | random }}"},
            {},
            "score.continuation_template, line 1: 'random' draws at random",
        ),
        (
            {"context": ["a"], "choices": CHOICES},
            {"choice_template": "letters.j2"},
            {},
            "score.choice_template: got 'letters.j2', expected a Jinja template or an existing file",
        ),
        (
            {"context": [[1]], "continuation": [[2]]},
            {"prefix": "\n"},
            {"model": None},
            "score.prefix: got text, expected null: model.tokenizer is null, which serves token ids only",
        ),
        (
            {"context": [[1]], "choices": [[[2]]], "answer": ["A"]},
            {"answer": "text"},
            {},
            "score.answer: got text, expected index or letter: the choices are token ids",
        ),
        (
            {"context": ["a"], "continuation": ["b"]},
            {"chunk_tokens": 1},
            {},
            "got 1, expected an integer from 2, or null",
        ),
        ({"context": ["a"]}, {"choices": []}, {}, "score.choices: got [], expected a list of texts, or null"),
        ({"context": ["a"]}, {"prefix": 5}, {}, "score.prefix: got 5, expected text, or null"),
    ],
)
def test_contradictions_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str], columns: Any, score: Any, settings: Any, message: str
) -> None:
    if "model" in settings:
        job.set(model__tokenizer=settings.pop("model"))
    job.settings["task"] = "score"
    job.settings["score"] = score
    assert job.input(**columns).set(**{f"input__{name}": value for name, value in settings.items()}).run() == 2
    assert message in capsys.readouterr().err
    assert not job.output.exists()


def test_columns_that_templates_read(job: Job) -> None:
    job.set(input__template="{{ q }}", input__columns={"id": None})
    found = bound(job, {"choice_template": "{{ row['w'] }} {{ letter }}"}, q=["a"], w=["b"], z=["c"], choices=CHOICES)
    assert found.read == ("q", "w", "choices")


def test_a_document_column_with_values_of_several_kinds_must_be_named(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.settings["task"] = "score"
    job.lines('{"text": "a"}', '{"text": 5}')
    assert job.run() == 2
    assert "input.columns.text: column 'text' holds values of several kinds" in capsys.readouterr().err
    assert job.set(input__columns={"text": "text"}).run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "bad_type"]


def test_the_column_of_groups_is_always_in_the_output(job: Job) -> None:
    found = bound(job, {"group_by": "s"}, context=["a"], continuation=["b"], s=pa.array([1]))
    assert found.passed == ("context", "continuation", "s")
    job.set(output__input_columns="none")
    assert bound(job, {"group_by": "s"}, context=["a"], continuation=["b"], s=[1]).passed == ("s",)
