"""One file of many parts: every format has the same rows, in input order, and appears whole."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job.conftest import Job

from rwkv_batch import cli
from rwkv_batch.commands import export


@pytest.fixture
def odd(job: Job) -> Job:
    """12 rows in 3 parts with two samples each, and columns of kinds that JSON and CSV lack. One row is an error."""
    job.input(
        id=list(range(12)),
        prompt=[None if row == 5 else f'a "{row}",\n' for row in range(12)],
        tags=[["x", "y"], None, []] * 4,
        at=pa.array([None, *range(11)], pa.timestamp("us", "UTC")),
        raw=[b"\xff"] * 12,
        ratio=[float("nan"), 0.5] * 6,
    )
    return job.set(sampling__n=2, output__rows_per_part=5, output__token_ids=True)


def test_parquet_has_the_rows_of_the_parts(odd: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert odd.run() == 3
    target = odd.folder / "all.parquet"
    assert cli.main(["export", str(odd.output), str(target)]) == 0
    assert f"{target}: 23 rows" in capsys.readouterr().out
    found, expected = pq.read_table(target), odd.table().replace_schema_metadata(None)
    assert found.schema.equals(expected.schema)
    assert found.drop_columns("ratio").equals(expected.drop_columns("ratio"))  # NaN equals nothing


def test_jsonl(odd: Job) -> None:
    assert odd.run() == 3
    target = odd.folder / "all.jsonl"
    assert cli.main(["export", str(odd.output), str(target)]) == 0
    found = [json.loads(line, parse_constant=pytest.fail) for line in target.read_text().splitlines()]
    rows = odd.rows()
    same = ("id", "prompt", "tags", "completion", "status", "token_ids", "cumulative_logprob")
    assert [[row[name] for name in same] for row in found] == [[row[name] for name in same] for row in rows]
    assert {row["raw"] for row in found} == {"/w=="} and {row["ratio"] for row in found} == {None, 0.5}
    assert found[0]["at"] is None and found[2]["at"] == "1970-01-01T00:00:00+00:00"


def test_csv(odd: Job) -> None:
    assert odd.run() == 3
    target = odd.folder / "all.csv"
    assert cli.main(["export", str(odd.output), str(target)]) == 0
    with target.open(newline="") as file:
        found = list(csv.DictReader(file))
    rows = odd.rows()
    assert [row["prompt"] or None for row in found] == [row["prompt"] for row in rows]
    assert [row["completion"] or None for row in found] == [row["completion"] for row in rows]
    assert [json.loads(row["tags"] or "null") for row in found] == [row["tags"] for row in rows]
    assert [json.loads(row["token_ids"] or "null") for row in found] == [row["token_ids"] for row in rows]


def test_what_is_refused_leaves_nothing_behind(
    odd: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert odd.run("--shard", "0/2") == 0

    def refusal(*arguments: str) -> str:
        before = sorted(odd.folder.rglob("*"))
        assert cli.main(["export", *arguments]) != 0
        assert sorted(odd.folder.rglob("*")) == before
        return capsys.readouterr().err

    target = str(odd.folder / "all.jsonl")
    assert "1 of 3 parts are missing" in refusal(str(odd.output), target)
    assert cli.main(["export", str(odd.output), target, "--partial"]) == 0
    assert "14 rows; 1 parts are missing" in capsys.readouterr().out
    assert "exists; choose another name, or replace it with --overwrite" in refusal(
        str(odd.output), target, "--partial"
    )
    assert "expected a name that ends with .parquet" in refusal(str(odd.output), "all.xlsx", "--partial")
    inside = str(odd.output / "all.csv")
    assert "a folder of the job" in refusal(str(odd.output), inside, "--partial")
    assert "job.json is missing" in refusal(str(odd.folder), target)
    monkeypatch.setattr(export, "to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        refusal(str(odd.output), str(odd.folder / "other.jsonl"), "--partial")
    assert not list(odd.folder.glob("*other*")) and not list(odd.folder.glob(".*other*"))


def test_a_damaged_part_is_named(odd: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert odd.run() == 3
    path = odd.output / "part-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert cli.main(["export", str(odd.output), str(odd.folder / "all.csv")]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err


def request(custom_id: str, url: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_openai_batch(job: Job) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    job.lines(
        request("chat", "/v1/chat/completions", messages=messages, n=2, max_tokens=300),
        request("text", "/v1/completions", prompt="a", max_tokens=1),
        request("bad", "/v1/completions", prompt="b", temperature=-1),
    )
    assert job.run() == 3
    target = job.folder / "output.jsonl"
    assert cli.main(["export", str(job.output), str(target), "--format", "openai"]) == 0
    chat, text = lines_of(target)
    rows = job.rows()
    assert (chat["custom_id"], chat["error"], chat["response"]["status_code"]) == ("chat", None, 200)
    body = chat["response"]["body"]
    assert (body["object"], [choice["index"] for choice in body["choices"]]) == ("chat.completion", [0, 1])
    contents = [choice["message"]["content"] for choice in body["choices"]]
    assert contents == [row["completion"] for row in rows if row["id"] == "chat"]
    used = sum(row["completion_tokens"] for row in rows if row["id"] == "chat")
    assert (body["usage"]["completion_tokens"], body["model"]) == (used, "demo")
    assert text["response"]["body"]["object"] == "text_completion"
    (choice,) = text["response"]["body"]["choices"]
    assert (choice["text"], choice["finish_reason"]) == (rows[2]["completion"], "length")
    (bad,) = lines_of(job.folder / "output.errors.jsonl")
    assert (bad["custom_id"], bad["response"], bad["error"]["code"]) == ("bad", None, "bad_sampling")
    assert len({line["id"] for line in (chat, text, bad)}) == 3


def test_openai_batches_need_ids(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.input(prompt=["a"]).run() == 0
    arguments = ["export", str(job.output), str(job.folder / "out.jsonl"), "--format", "openai"]
    assert cli.main(arguments) == 2
    assert "no column with the role id" in capsys.readouterr().err
    assert not list(job.folder.glob("*out.*jsonl*"))
