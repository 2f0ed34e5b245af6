"""Two jobs over the same rows: what is equal, what has flipped, and what cannot be compared."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from job.conftest import Job

from rwkv_batch import cli


def run_as(job: Job, name: str) -> str:
    out = str(job.folder / name)
    job.set(output__path=out)
    assert job.run() in (0, 3)
    return out


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_generations(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(id=list(range(6)), prompt=[f"p{row}" for row in range(6)]).set(sampling__n=2)
    a = run_as(job, "a")
    rows_a = job.rows()
    job.input(id=list(range(6)), prompt=["p0", "p1", "other", "p3", None, "p5"])
    b = run_as(job, "b")
    rows_b = [row for row in job.rows() if row["status"] == "ok"]
    found = compared(capsys, a, b)
    pairs = {(row["id"], row["sample_index"]): row for row in rows_a}
    equal = sum(pairs[row["id"], row["sample_index"]]["completion"] == row["completion"] for row in rows_b)
    assert (found["joined_by"], found["ok"], found["equal"], found["errors_b"]) == ("id", 10, equal, 1)
    assert (found["only_a"], found["pairs"]) == (1, 11)
    assert [(row["id"], row["sample"]) for row in found["rows"]] == [(2, 0), (2, 1)]
    assert found["rows"][0]["a"] == pairs[2, 0]["completion"] != found["rows"][0]["b"]
    assert compared(capsys, a, a)["equal"] == 12
    assert cli.main(["compare", a, b, "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "equal   8 of 10 completions (80.0%)" in out and out.count("(id 2)") == 1


def test_rows_are_joined_by_id_in_any_order(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    choices = [["w", "x", "y", "z"]] * 40
    answers = [row % 4 for row in range(40)]
    contexts = [f"c{row}" for row in range(40)]
    job.settings["task"] = "score"
    job.input(id=list(range(40)), context=contexts, choices=choices, answer=answers)
    a = run_as(job, "a")
    rows_a = {row["id"]: row for row in job.rows()}
    job.input(
        id=list(range(40))[::-1], context=[f"{text}!" for text in contexts][::-1], choices=choices, answer=answers[::-1]
    )
    b = run_as(job, "b")
    rows_b = {row["id"]: row for row in job.rows()}
    found = compared(capsys, a, b, "--show", "100")
    metric = found["metrics"]["accuracy"]
    flipped = [row for row in rows_a if rows_a[row]["correct"] != rows_b[row]["correct"]]
    assert metric["rows"] == 40 and flipped
    assert metric["a"] == pytest.approx(sum(row["correct"] for row in rows_a.values()) / 40)
    assert metric["b"] == pytest.approx(sum(row["correct"] for row in rows_b.values()) / 40)
    assert [row["id"] for row in found["rows"]] == flipped
    assert metric["only_a"] == sum(rows_a[row]["correct"] for row in flipped)
    assert metric["low"] <= metric["b"] - metric["a"] <= metric["high"]
    assert cli.main(["compare", a, b]) == 0
    assert "McNemar's p" in capsys.readouterr().out


def test_continuations(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.settings["task"] = "score"
    job.input(context=["a", "b", None], continuation=["x", "y", "z"])
    a = run_as(job, "a")
    job.input(context=["a", "c", "d"], continuation=["x", "y", "z"])
    found = compared(capsys, a, run_as(job, "b"))
    assert (found["joined_by"], found["ok"], found["equal"], found["errors_a"]) == ("row order", 2, 1, 1)
    assert set(found["metrics"]) == {"greedy_match", "logprob"}


def test_what_cannot_be_compared(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=["a", "b"])
    a = run_as(job, "a")
    job.input(prompt=["a", "b", "c"])
    assert cli.main(["compare", a, run_as(job, "b")]) == 2
    assert "got 2 and 3 rows without unique ids" in capsys.readouterr().err
    job.settings["task"] = "score"
    job.input(context=["a"], continuation=["x"])
    assert cli.main(["compare", a, run_as(job, "c")]) == 2
    assert "expected jobs of one task" in capsys.readouterr().err


def test_jobs_without_rows(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt=pa.array([], pa.string()))
    a, target = run_as(job, "a"), job.folder / "all.csv"
    assert cli.main(["compare", a, a]) == 0 and "pairs   0" in capsys.readouterr().out
    assert cli.main(["export", a, str(target)]) == 0
    assert target.read_text().count("\n") == 1
