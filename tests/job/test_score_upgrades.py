"""A score job that an earlier version has begun goes on with its columns, and without the rules that came later."""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import fake_llm
from rwkv_batch.job.score_section import ScoreSection

from .conftest import Job
from .test_upgrades import edit, run_again

STATUS = ("status", "error_code", "error")
NEW_OF_SCORE = [f"score.{name}" for name in ScoreSection.model_fields if name != "add_bos_token"]


@pytest.mark.parametrize(
    ("answer", "settings", "codes"),
    [
        ([0, 7, -1, None], {}, [None] * 4),
        (["x", "B", "nonsense", None], {}, [None] * 4),
        ([0, 7, -1, None], {"answer": "answer"}, [None] * 4),
    ],
)
def test_a_score_job_of_an_earlier_version_keeps_its_columns_and_rows(
    job: Job, monkeypatch: pytest.MonkeyPatch, answer: list[Any], settings: Any, codes: list[None]
) -> None:
    """Then answers were integers that the report alone read, and no error rows. The job goes on so."""
    job.settings["task"] = "score"
    job.input(context=list("abcd"), choices=[["x", " yy"]] * 4, answer=answer, correct=list("wxyz"))
    job.set(input__columns=settings, output__rows_per_part=2)
    monkeypatch.setattr("rwkv_batch.job.prepare._is_of_an_earlier_version", lambda *_: True)
    assert job.run() == 0
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "rwkv_batch.llm", fake_llm)
    edit(job, **dict.fromkeys(NEW_OF_SCORE, ...))
    assert run_again(job) == (0, 0)
    parts = job.parts()
    (job.output / "part-00001-of-00002.parquet").unlink()
    assert run_again(job) == (0, 1)
    assert job.table().column_names[4:] == ["logprob", "is_greedy", "num_tokens", *STATUS, "best_choice"]
    assert [row["error_code"] for row in job.rows()] == codes
    for name, data in parts.items():
        assert pq.read_table(job.output / name).equals(pq.read_table(pa.BufferReader(data)))
    scores = json.loads((job.state / "report.json").read_text())["scores"]
    assert scores.keys() == ({"accuracy", "accuracy_norm", "accuracy_bytes"} if answer[0] == 0 else set())
    assert job.run("-o", "score.choice_template=' {{ letter }}'") == 4


def test_a_damaged_job_json_is_reported_as_such(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.settings["task"] = "score"
    assert job.input(context=["a"], continuation=["b"]).run() == 0
    (job.state / "job.json").write_text("{}")
    assert job.run() == 4
    assert "job.json is damaged" in capsys.readouterr().err


def test_a_refusal_names_what_the_answers_are(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.settings["task"] = "score"
    assert job.input(context=["a"], choices=[["x", "y"]], answer=["y"]).run() == 0
    assert job.run("-o", "score.answer=text") == 0
    capsys.readouterr()
    assert job.run("-o", "score.answer=index") == 4
    assert 'score.answer: "text" when it was started, "index" now' in capsys.readouterr().err
    job.input(context=["a"], choices=[["x", "y"]], answer=[1]).set(output__path=str(job.folder / "numbers"))
    assert (job.run(), job.run("-o", "score.answer=index")) == (0, 0)
