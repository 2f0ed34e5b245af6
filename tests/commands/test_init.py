"""A job file for a data file: the columns are recognized, and the job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rwkv_batch import cli
from rwkv_batch.commands.schema import job_schema

MESSAGES = [[{"role": "user", "content": "Hi"}]]
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": ["a"]}, {"task": "generate"}),
    ({"Prompt": ["a"], "uid": [1]}, {"columns": {"prompt": "Prompt", "id": "uid"}}),
    ({"messages": MESSAGES, "id": ["x"]}, {"task": "generate"}),
    ({"prompt_token_ids": [[1, 2]]}, {"task": "generate"}),
    ({"question": ["a"], "note": [1]}, {"template": "Question: {{ question or '' }}\n\nAnswer:"}),
    ({"instruction": ["a", "b"], "input": ["x", None]}, {"rows": 2}),
    ({"n": [3], "Text": ["a"]}, {"columns": {"prompt": "Text"}}),
    ({"n": ["many"], "body": ["a"]}, {"columns": {"prompt": "body", "n": None}}),
    (
        {"question": ["a"], "completion": ["x"], "status": [1]},
        {"renamed": {"completion": "completion_2", "status": "status_2"}},
    ),
    ({"context": ["a"], "continuation": ["b"]}, {"task": "score"}),
    ({"context": ["a"], "choices": [["b", "c"]], "answer": [1]}, {"task": "score"}),
    (
        {"question": ["a"], "choices": [["b", "c"]], "answer": ["c"]},
        {"task": "score", "choice_template": " {{ choice }}"},
    ),
]


@pytest.mark.parametrize(("columns", "expected"), CASES, ids=lambda case: " ".join(case))
def test_the_job_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table(columns), "my data.parquet")
    assert cli.main(["init", "my data.parquet"]) == 0
    job = yaml.safe_load(Path("my_data.yaml").read_text())
    jsonschema.Draft202012Validator(job_schema()).validate(job)
    assert job["task"] == expected.get("task", "generate")
    assert job["input"].get("columns", {}) == expected.get("columns", {})
    assert job["input"].get("template") == expected.get("template", job["input"].get("template"))
    assert job["output"].get("columns", {}) == expected.get("renamed", {})
    assert job.get("score", {}).get("choice_template") == expected.get("choice_template")
    assert cli.main(["run", "my_data.yaml"]) == 0
    statuses = pq.read_table("out/my_data")[expected.get("renamed", {}).get("status", "status")]
    assert set(statuses.to_pylist()) == {"ok"} and len(statuses) == expected.get("rows", job.get("n", len(statuses)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.csv", "question,answer\nwhy?,so\n"),
        ("data.jsonl", '{"question": "why?", "answer": "so"}\n'),
        ("data.jsonl", '{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 3}}\n'),
    ],
)
def test_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert cli.main(["init", name, "--file", "job.yaml"]) == 0
    assert cli.main(["run", "job.yaml"]) == 0


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"a": [1], "b": [2.0]}), "numbers.parquet")
    assert cli.main(["init", "numbers.parquet"]) == 2
    assert "expected one: there are a, b" in capsys.readouterr().err
    assert cli.main(["init", "missing.parquet"]) == 2
    pq.write_table(pa.table({"prompt": ["a"]}), "a.parquet")
    assert cli.main(["init", "a.parquet"]) == 0
    assert cli.main(["init", "a.parquet"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["init", "a.parquet", "--overwrite", "--model", "x.pth"]) == 0
    assert yaml.safe_load(Path("a.yaml").read_text())["model"] == {"path": "x.pth"}
