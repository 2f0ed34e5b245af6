"""OpenAI batch files: requests become rows, or bad rows with a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from job import fake_llm
from rwkv_batch.job.input.reader import open_input

from ..conftest import Job


def request(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_requests_of_a_chat(job: Job) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    job.lines(
        request("one", model="m", messages=[{"role": "user", "content": "hi"}], temperature=0.5, max_tokens=3),
        request("two", messages=[{"role": "user", "content": parts}], max_completion_tokens=2, stop="x", n=2),
        request("three", messages=[{"role": "user", "content": "hi"}], tools=[{"type": "function"}]),
        request("four", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        request("five", messages=[{"role": "user", "content": "hi"}], logit_bias={"5": -100}, temperature="hot"),
        json.dumps({"custom_id": "six"}),
        request("seven", messages=[{"role": "user", "content": "hi"}], logit_bias={"5": -100}, seed=9, model="m"),
    )
    assert job.run() == 3
    rows = job.rows()
    assert [(row["id"], row["sample_index"], row["error_code"]) for row in rows] == [
        ("one", 0, None),
        ("two", 0, None),
        ("two", 1, None),
        ("three", 0, "bad_messages"),
        ("four", 0, "bad_messages"),
        ("five", 0, "bad_type"),
        ("six", 0, "bad_json"),
        ("seven", 0, None),
    ]
    assert [row["prompt_tokens"] for row in rows[:2]] == [len("User: hi\n\nAssistant:"), len("User: ab\n\nAssistant:")]
    assert rows[0]["completion_tokens"] <= 3
    assert rows[3]["error"] == "tool 0 has the name None; expected text on one line"
    assert fake_llm.LLM.loaded == 1


def test_completions(job: Job) -> None:
    job.lines(request("a", prompt="hello"), request("b", prompt="world"))
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == ["hello", "world"]


def test_bad_cells_spoil_their_row_only(job: Job) -> None:
    job.lines(
        request("one", prompt="hello", logit_bias={"5": -100}, stop="x"),
        request("two", prompt="hello", logit_bias={"6": "much"}),
        request("three", prompt=[1, 2], stop=["y"]),
        request("four", prompt="hello", stop=[["y"]]),
    )
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "bad_type", None, "bad_type"]


def test_chats_and_completions_in_one_file(job: Job) -> None:
    job.lines(
        json.dumps({"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "hello"}}),
        request("b", messages=[{"role": "developer", "content": "x"}]),
        json.dumps({"custom_id": "c", "url": "/v1/completions", "body": {"prompt": [[1, 2, 3]]}}),
        json.dumps({"custom_id": "d", "url": "/v1/embeddings", "body": {"input": "hello"}}),
        request("e", prompt="x", messages=[]),
        request("f"),
        request("g", prompt=["x", "y"]),
    )
    assert job.run() == 3
    rows = job.rows()
    assert [row["prompt_tokens"] for row in rows[:3]] == [5, len("System: x\n\nAssistant:"), 3]
    codes = [None] * 3 + ["bad_sampling", "bad_type", "null_prompt", "bad_type"]
    assert [row["error_code"] for row in rows] == codes
    assert rows[3]["error"] == "url: got '/v1/embeddings', expected /v1/chat/completions or /v1/completions"


def test_lines_that_are_no_requests_keep_the_format(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{torn\n" + request("a", prompt="x"))
    (tmp_path / "b.jsonl").write_text("")
    source = open_input(str(tmp_path), "auto", {})
    assert source.schema.names == ["id", "prompt"]
    assert source.num_rows == 2
    path.write_text(request("a", prompt="x" * 2**20))
    assert open_input(str(path), "auto", {}).schema.names == ["id", "prompt"]


def test_a_file_without_any_prompt(job: Job) -> None:
    embed = json.dumps({"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "x"}})
    assert job.lines(embed, request("b", tools=5)).run() == 3
    assert [row["error_code"] for row in job.rows()] == ["bad_sampling", "null_prompt"]


@pytest.mark.parametrize("seed", [2**63 + 1, -(2**63)])
def test_large_seeds(job: Job, seed: int) -> None:
    assert job.lines(request("a", prompt="x", seed=seed)).run() == 0
    assert job.rows()[0]["seed"] == seed
