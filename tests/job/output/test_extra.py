"""The columns of output.extra, and a second job over the output of a first one."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ..conftest import Job

ALL = ["input_row", "prompt", "input_file"]


@pytest.fixture
def two_files(job: Job) -> Job:
    """Five rows in two files, in three parts."""
    (job.folder / "in").mkdir()
    job.input("in/b.parquet", question=["c", None, "e"]).input("in/a.parquet", question=["a", "b"])
    return job.set(input__path=str(job.folder / "in"), output__rows_per_part=2, sampling__n=2)


def columns(job: Job, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(job.table()[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("kept", ["all", "none"])
def test_rows_can_be_traced(two_files: Job, kept: str) -> None:
    two_files.set(input__template="Q: {{ question }}?", output__extra=ALL, output__input_columns=kept)
    assert two_files.run() == 3
    table, a, b = two_files.table(), f"{two_files.folder}/in/a.parquet", f"{two_files.folder}/in/b.parquet"
    assert table.column_names[: 4 + (kept == "all")] == [*["question"][: kept == "all"], *ALL, "sample_index"]
    assert [table.schema.field(name).type for name in ALL] == [pa.int64(), pa.string(), pa.string()]
    rows = [(0, "Q: a?", a), (0, "Q: a?", a), (1, "Q: b?", a), (1, "Q: b?", a), (2, "Q: c?", b), (2, "Q: c?", b)]
    assert columns(two_files, *ALL) == [*rows, (3, None, b), (4, "Q: e?", b), (4, "Q: e?", b)]


@pytest.mark.parametrize("name", ALL)
def test_each_alone(two_files: Job, name: str) -> None:
    two_files.set(input__columns={"prompt": "question"}, output__extra=[name], output__input_columns="none")
    assert two_files.run() == 3
    assert two_files.table().column_names[:2] == [name, "sample_index"]
    prompts = ["a", "a", "b", "b", "c", "c", None, "e", "e"]
    files = [f"{two_files.folder}/in/{file}.parquet" for file in "aaaabbbbb"]
    expected = {"input_row": [0, 0, 1, 1, 2, 2, 3, 4, 4], "prompt": prompts, "input_file": files}
    assert two_files.table()[name].to_pylist() == expected[name]


def test_prompts_of_other_kinds(job: Job) -> None:
    job.set(output__extra=["prompt"])
    job.input(prompt_token_ids=pa.array([[1, 2], [3]], pa.list_(pa.int32())))
    assert (job.run(), job.table()["prompt"].to_pylist()) == (0, [None, None])
    job.input(messages=[[{"role": "user", "content": "hi"}]]).set(output__path=str(job.folder / "chat"))
    assert (job.run(), job.table()["prompt"].to_pylist()) == (0, ["User: hi\n\nAssistant:"])
    job.settings["task"] = "score"
    job.input(question=["a", "b"], choices=[["x", "y"], None])
    job.set(output__path=str(job.folder / "score"), input__columns={"context": "question"})
    assert (job.run(), job.table()["prompt"].to_pylist()) == (3, ["a", None])


def test_json_lines_with_bad_lines(job: Job) -> None:
    job.lines('{"prompt": "a"}', "{broken", '{"prompt": 5}', '{"prompt": "d"}').set(output__extra=["prompt"])
    assert job.run() == 2
    job.set(output__columns={"prompt": "text"})
    assert job.run() == 3
    assert columns(job, "text", "status") == [("a", "ok"), (None, "error"), (None, "error"), ("d", "ok")]


def test_a_job_goes_on_after_its_input_has_moved(two_files: Job) -> None:
    """The file is the one that the job was started with, in all parts."""
    two_files.set(input__columns={"prompt": "question"}, output__extra=["input_file"])
    assert two_files.run() == 3
    parts = two_files.parts()
    (two_files.output / "part-00001-of-00003.parquet").unlink()
    (two_files.folder / "in").rename(two_files.folder / "moved")
    assert two_files.set(input__path=str(two_files.folder / "moved")).run() == 3
    assert two_files.parts() == parts


def test_a_second_job_over_the_output_of_the_first(job: Job) -> None:
    assert job.input(id=[1, 2, 3], prompt=["a", None, "c"]).set(sampling__n=2).run() == 3
    first = job.rows()
    job.set(input__path=str(job.output), output__path=str(job.folder / "rated"), sampling__n=1)
    job.set(input__template="Rate: {{ completion }}", output__extra=["prompt"])
    assert job.run() == 2
    names = [field.name for field in pq.read_schema(next((job.folder / "out").iterdir()))][2:]
    job.set(output__columns={name: f"rating_{name}" for name in [*names, "prompt"]})
    assert job.run() == 3
    rated = job.rows()
    assert [{name: row[name] for name in first[0]} for row in rated] == first
    assert [row["rating_status"] for row in rated] == ["ok", "ok", "error", "ok", "ok"]
    assert [row["status"] for row in rated] == ["ok", "ok", "error", "ok", "ok"]
    for row in rated:
        is_ok = row["status"] == "ok"
        assert row["rating_prompt"] == (f"Rate: {row['completion']}" if is_ok else None)
        assert (row["rating_sample_index"], row["rating_error_code"]) == (0, None if is_ok else "template_error")
    report = json.loads((job.state / "report.json").read_text())
    assert (report["rows"], report["errors"]) == ({"ok": 4, "error": 1}, {"template_error": 1})
    assert job.run() == 3


def test_a_refusal_names_every_column_of_the_first_job(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """What it proposes is YAML, and works; also for a third job."""
    for number in (2, 3):
        assert job.run() == 0
        path = str(job.output)
        job.set(input__path=path, output__path=f"{path}{number}")
        assert job.run("--dry-run") == 2
        message = capsys.readouterr().err
        proposal = message.split("for example ")[1].split(", or leave")[0]
        assert proposal.startswith(f"columns: {{sample_index: sample_index_{number}, completion: completion_{number}, ")
        job.set(output__columns=yaml.safe_load(f"{{{proposal}}}")["columns"])
    assert job.run() == 0
    names = job.table().column_names
    assert {"completion", "completion_2", "completion_3"} < {*names} and len(names) == 2 + 3 * 10


def test_the_proposal_keeps_the_names_that_the_job_gives(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    job.set(input__path=str(job.output), output__path=str(job.folder / "rated"))
    job.set(output__columns={"completion": "rating"})
    assert job.run("--dry-run") == 2
    proposal = capsys.readouterr().err.split("for example ")[1].split(", or leave")[0]
    job.set(output__columns=yaml.safe_load(f"{{{proposal}}}")["columns"])
    assert job.run() == 0
    assert {"rating", "status_2"} < {*job.table().column_names}
