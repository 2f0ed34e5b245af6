"""Rows: what becomes a prompt, what a row may override, how a bad row is reported while all others are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from job import fake_llm
from rwkv_batch.job.input.roles import SAMPLING_CHECKS
from rwkv_batch.sampling_params import SamplingParams

from ..conftest import Job


def codes(job: Job) -> list[str | None]:
    return [row["error_code"] for row in job.rows()]


def test_bad_rows_are_data(job: Job) -> None:
    job.input(prompt=["good", None, "much too long", "good too"])
    job.set(input__max_prompt_tokens=8)
    assert job.run() == 3
    good, null, long, too = job.rows()
    assert [row["status"] for row in (good, null, long, too)] == ["ok", "error", "error", "ok"]
    assert (null["error_code"], null["error"]) == ("null_prompt", "the column 'prompt' is null")
    assert long["error_code"] == "prompt_too_long"
    assert long["error"] == "the prompt has 13 tokens, more than input.max_prompt_tokens (8)"
    assert {name: null[name] for name in ("sample_index", "finish_reason", "completion", "prompt_tokens")} == {
        "sample_index": 0,
        "finish_reason": "error",
        "completion": None,
        "prompt_tokens": None,
    }
    assert job.run("--allow-errors") == 0


def test_all_rows_bad(job: Job) -> None:
    job.input(prompt=pa.array([None] * 25, pa.string()))
    assert job.run() == 3
    assert codes(job) == ["null_prompt"] * 25


def test_token_ids(job: Job) -> None:
    column = pa.array([[1, 2], None, [], [5, 2000], [-1], [3, None]], pa.list_(pa.int16()))
    job.input(prompt_token_ids=column).set(model__tokenizer=None, input__max_prompt_tokens=2)
    assert job.run() == 3
    assert codes(job) == [None, "null_prompt", None, "token_out_of_range", "token_out_of_range", "bad_type"]
    assert [row["prompt_tokens"] for row in job.rows()] == [2, None, 0, 0, 0, None]


def test_messages(job: Job) -> None:
    user, bad = {"role": "user", "content": "hello"}, {"role": "judge", "content": "x"}
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    job.input(messages=pa.array([[user], [bad], [], None, [{"role": "user", "content": None}], [None]], kind))
    assert job.run() == 3
    assert codes(job) == [None, "bad_messages", "bad_messages", "null_prompt", "bad_messages", "bad_messages"]
    assert job.rows()[0]["prompt_tokens"] == len("User: hello\n\nAssistant:")


USER = {"role": "user", "content": "hello"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "text": None}]}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[PARTS], [IMAGE]]),
        pa.array([{"role": ["user"], "content": ["hello"]}, {"role": ["user"], "content": []}]),
        pa.array([{"role": ["user"], "content": [PARTS["content"]]}, None]),
        pa.array([json.dumps([USER]), "hello"]),
        pa.array([json.dumps([PARTS]), "{}"]).dictionary_encode(),
        pa.array([json.dumps([USER]).encode(), b"\xff"], pa.large_binary()),
        pa.array([[{"role": b"user", "content": b"hello"}], [{"role": b"user", "content": b"\xff"}]]),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array([json.dumps([USER]), None])),
        pa.array([json.dumps([USER]), None], pa.string_view()),
    ],
    ids=["parts", "lists", "lists of parts", "text", "dictionary", "binary", "bytes", "JSON", "view"],
)
def test_messages_in_every_form(job: Job, column: pa.Array) -> None:
    assert job.input(messages=column).run() == 3
    good, bad = job.rows()
    assert (good["status"], good["prompt_tokens"]) == ("ok", len("User: hello\n\nAssistant:"))
    assert bad["error_code"] in ("bad_messages", "null_prompt", "invalid_text")


def test_text_in_columns_of_bytes(job: Job) -> None:
    job.input(prompt=pa.array(["é".encode(), b"\xff", None], pa.binary()))
    assert job.run() == 3
    assert codes(job) == [None, "invalid_text", "null_prompt"]
    job.input("score.parquet", context=[b"a", b"b"], choices=[[b"x", b"y"], [b"x", b"\xff"]])
    assert job.set(output__path=str(job.folder / "score")).run("-o", "task=score") == 3
    assert codes(job) == [None, "invalid_text"]


def test_a_time_beyond_all_calendars(job: Job) -> None:
    job.input(when=pa.array([0, 2**60], pa.timestamp("us"))).set(input__template="{{ when.year }}")
    assert job.run() == 3
    assert [row["error_code"] for row in job.table().select(["error_code"]).to_pylist()] == [None, "bad_type"]


def test_text_that_is_not_utf8(job: Job) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", b"also"], pa.binary())
    job.input(prompt=pa.Array.from_buffers(pa.string(), 3, raw.buffers()))
    assert job.run() == 3
    assert [row["error_code"] for row in job.table().select(["error_code"]).to_pylist()] == [None, "bad_type", None]


def test_template(job: Job) -> None:
    job.input(question=["one", None, "three"], tone=["kind", "x", None])
    job.set(input__template="{{ question.upper() }}, {{ tone }}!")
    assert job.run() == 3
    first, *others = job.rows()
    assert first["prompt_tokens"] == len("ONE, kind!")
    assert [row["error_code"] for row in others] == ["template_error", "template_error"]


def test_a_template_sees_the_values_of_a_column_of_several_types(job: Job) -> None:
    job.lines('{"tags": [1, "b"], "id": 1}', '{"tags": ["c"], "id": "2b"}', '{"id": 2.5, "tags": null}', "{}")
    job.set(input__template="{{ tags | join('+') if tags else 'none' }} {{ id }}")
    assert job.run() == 3
    rows = job.rows()
    assert [row["prompt_tokens"] for row in rows] == [*map(len, ("1+b 1", "c 2b", "none 2.5")), None]
    assert [row["tags"] for row in rows] == ['[1, "b"]', '["c"]', None, None]


def test_template_from_a_file_sees_messages(job: Job) -> None:
    job.input(messages=[[{"role": "user", "content": "hi"}]])
    (job.folder / "t.j2").write_text("{{ messages[0].content }}!")
    job.set(input__template=str(job.folder / "t.j2"))
    assert job.run() == 0
    assert job.rows()[0]["prompt_tokens"] == 3


def completions(job: Job) -> list[tuple[int, str]]:
    return [(row["sample_index"], row["completion"]) for row in job.rows()]


def test_a_run_names_the_columns_that_override_sampling(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    job.input(prompt=["a"], n=[2], temperature=[0.5])
    with caplog.at_level("INFO", "rwkv_batch"):
        assert job.run() == 0
    assert "sampled as the columns n, temperature say" in caplog.text


def test_rows_override_sampling(job: Job) -> None:
    prompts = ["a", "b", "c", "d"]
    job.input(
        prompt=prompts,
        max_tokens=pa.array([1, None, 3, None], pa.float64()),
        seed=pa.array([None, 7, None, None], pa.int64()),
        n=pa.array([None, None, 2, None], pa.int8()),
    )
    assert job.run() == 0
    rows = job.rows()
    assert [row["sample_index"] for row in rows] == [0, 0, 0, 1, 0]
    assert rows[0]["completion_tokens"] == 1
    assert max(row["completion_tokens"] for row in rows[2:4]) <= 3
    other = Job(job.folder / "other", {**job.settings, "output": {"path": str(job.folder / "other")}})
    (job.folder / "other").mkdir()
    other.settings["output"] = {"path": str(job.folder / "other" / "out")}
    other.input(prompt=prompts)
    assert other.run() == 0
    same = [row["completion"] for row in other.rows()]
    assert rows[4]["completion"] == same[3]
    assert rows[1]["completion"] != same[1]


def test_a_struct_overrides_sampling(job: Job) -> None:
    values = [{"n": 2, "logit_bias": [(3, -1.0)]}, None, {"n": None, "logit_bias": None}, {"n": -1}]
    kind = pa.struct([("n", pa.int64()), ("logit_bias", pa.map_(pa.int64(), pa.float64()))])
    job.input(prompt=["a", "b", "c", "d"], sampling=pa.array(values, kind))
    assert job.run() == 3
    assert [row["prompt"] for row in job.rows()] == ["a", "a", "b", "c", "d"]
    assert codes(job)[-1] == "bad_sampling"


def served_params(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[SamplingParams]:
    """Runs the job; what each of its rows is sampled with, in order."""
    served: dict[int, SamplingParams] = {}
    original = fake_llm.Serving._complete

    def complete(self: fake_llm.Serving, row: Any) -> None:
        served[row.row.row] = row.row.params
        original(self, row)

    monkeypatch.setattr(fake_llm.Serving, "_complete", complete)
    assert job.run() == 0
    return [served[row] for row in sorted(served)]


def test_biases_of_a_struct_are_the_row_s_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Arrow struct has the keys of all rows. A row has a bias where its value is not null."""
    values = [{"3": -1.0, "5": None}, {"3": None, "5": 2.0}, {"3": None, "5": None}, None]
    kind = pa.struct([("3", pa.float64()), ("5", pa.float64())])
    job.input(prompt=["a", "b", "c", "d"], logit_bias=pa.array(values, kind))
    assert [params.logit_bias for params in served_params(job, monkeypatch)] == [{3: -1.0}, {5: 2.0}, {}, None]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", -1.0, "temperature: got -1.0, expected a number from 0 to 100"),
        ("temperature", float("nan"), "temperature: got nan, expected a number from 0 to 100"),
        ("max_tokens", 1.5, "max_tokens: got 1.5, expected an integer from 0 to 2147483647"),
        ("top_p_order", "odd", "top_p_order: got 'odd', expected 'standard' or 'rwkv'"),
        ("stop", "", "stop: got '', expected a non-empty string or a list of non-empty strings"),
        ("stop_token_ids", [-1], "stop_token_ids: got [-1], expected a list of token ids"),
    ],
)
def test_bad_sampling_values(job: Job, field: str, value: Any, expected: str) -> None:
    job.input(**{"prompt": ["a", "b"], field: pa.array([None, value])})
    assert job.run() == 3
    ok, bad = job.rows()
    assert (ok["status"], bad["error_code"]) == ("ok", "bad_sampling")
    assert bad["error"].startswith(expected)


def test_every_sampling_field_may_be_a_column() -> None:
    assert set(SAMPLING_CHECKS) == set(SamplingParams.field_names())


def test_a_column_can_be_kept_out_of_sampling(job: Job) -> None:
    job.input(prompt=["a"], n=["not a number of samples"]).set(input__columns={"n": None})
    assert job.run() == 0
    assert len(job.rows()) == 1


def test_wrong_cells_in_jsonl(job: Job) -> None:
    job.lines(
        '{"prompt": "a"}', '{"prompt": 5}', "", "{", '{"prompt": "b", "temperature": "hot"}', '{"temperature": 1}'
    )
    assert job.run() == 3
    assert codes(job) == [None, "bad_type", "bad_json", "bad_type", "null_prompt"]


@pytest.mark.parametrize(
    ("seed", "code"), [(2**64 - 1, None), (2**64, "bad_type"), (-(2**63), None), (7.0, None), (7.5, "bad_type")]
)
def test_integers_of_64_bits_in_jsonl(job: Job, seed: float, code: str | None) -> None:
    job.lines('{"prompt": "a", "seed": 1}', f'{{"prompt": "b", "seed": {seed}}}').run()
    assert codes(job) == [None, code]


def test_a_line_of_deep_brackets_is_a_bad_row(job: Job) -> None:
    assert job.lines('{"prompt": "a"}', "[" * 200_000, '{"prompt": "b"}').run() == 3
    assert codes(job) == [None, "bad_json", None]


def test_a_first_line_of_deep_brackets_is_a_bad_row(job: Job) -> None:
    assert job.lines("[" * 200_000, '{"prompt": "b"}').run() == 3
    assert codes(job) == ["bad_json", None]


@pytest.mark.parametrize("half", [b"\\ud800", "\ud800".encode(errors="surrogatepass")])
def test_half_of_a_surrogate_pair_makes_a_bad_row(job: Job, half: bytes) -> None:
    job.lines('{"prompt": "\ud55c"}', "HALF", '{"prompt": "b"}')
    path = Path(job.settings["input"]["path"])
    path.write_bytes(path.read_bytes().replace(b"HALF", b'{"prompt": "' + half + b'"}'))
    assert job.run() == 3
    assert codes(job) == [None, "invalid_text", None]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['{"prompt": "a", "sampling": {"temperature": 1}}', '{"prompt": "b", "sampling": {"temperature": "hot"}}'], 1),
        (['{"prompt": "a", "sampling": 5}', '{"prompt": "b"}'], 0),
        (['{"prompt": "a", "stop": [1]}', '{"prompt": "b", "stop": ["y"]}', '{"prompt": "c", "stop": "z"}'], 0),
        (['{"prompt": "a", "logit_bias": {"7": 1}}', '{"prompt": "b", "logit_bias": {"8": "x"}}'], 1),
        (['{"prompt": "a", "stop_token_ids": "x"}', '{"prompt": "b", "stop_token_ids": [1]}'], 0),
        (['{"prompt": "a", "top_p_order": 5}', '{"prompt": "b", "top_p_order": "rwkv"}'], 0),
        (['{"prompt": "a"}', '{"prompt": null, "x": 1}', '{"prompt": 5}'], 2),
    ],
)
def test_one_wrong_cell_in_jsonl_spoils_its_row_only(job: Job, lines: list[str], expected: int) -> None:
    assert job.lines(*lines).run() == 3
    found = codes(job)
    assert found[expected] == "bad_type"
    assert set(found[:expected] + found[expected + 1 :]) <= {None, "null_prompt"}


def test_a_first_prompt_of_the_wrong_type_is_a_bad_row(job: Job) -> None:
    assert job.lines('{"prompt": null}', '{"prompt": 5}').run() == 3
    assert codes(job) == ["null_prompt", "bad_type"]


def test_a_wrong_cell_in_an_object_is_named(job: Job) -> None:
    job.lines('{"prompt": "a", "sampling": {"n": 1, "stop": 5}}').run()
    assert job.rows()[0]["error"] == "sampling.stop: got 5, expected a string or a list of strings"


def test_jsonl_stop_and_logit_bias_reach_the_engine(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.lines(
        '{"prompt": "a", "sampling": {"stop": "x", "logit_bias": {"7": -1}}}',
        '{"prompt": "b", "sampling": {"stop": ["y", "z"], "logit_bias": {"8": 2.5}}}',
        '{"prompt": "c"}',
    )
    served = served_params(job, monkeypatch)
    assert [params.stop_strings for params in served] == [("x",), ("y", "z"), ()]
    assert [params.logit_bias for params in served] == [{7: -1.0}, {8: 2.5}, None]


def test_jsonl_scores_of_token_ids(job: Job) -> None:
    job.lines(
        '{"context": null, "choices": []}',
        '{"context": [1, 2], "choices": [[1], [2]]}',
        '{"context": "text", "choices": [[1]]}',
    )
    assert job.run("-o", "task=score") == 3
    assert codes(job) == ["null_prompt", None, "bad_type"]


def test_stop_at_the_first_bad_row(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    prompts: list[str | None] = [f"p{i}" for i in range(30)]
    prompts[25] = None
    job.input(prompt=prompts, uid=[f"u\n{i}" for i in range(30)])
    job.set(run__on_row_error="stop", input__columns={"id": "uid"}, output__input_columns="none")
    assert job.run() == 3
    out = capsys.readouterr().out
    assert "stopped at row 25 (uid 'u\\n25'): null_prompt: the column 'prompt' is null\n" in out
    assert "start the same command again to go on with the rows after it" in out
    assert sorted(job.parts()) == ["part-00000-of-00003.parquet", "part-00001-of-00003.parquet"]
    assert not (job.state / "_SUCCESS.json").exists()
    job.set(run__on_row_error="continue")
    assert job.run() == 3
    assert [row["status"] for row in job.rows()].count("ok") == 29


def test_stop_at_a_row_that_the_engine_refuses(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.input(prompt_token_ids=[[1]] * 10 + [[-1]] + [[1]] * 1000).set(run__on_row_error="stop")
    assert job.run() == 3
    assert "stopped at row 10: token_out_of_range: id -1, expected 0 to " in capsys.readouterr().out
    assert not (job.state / "_SUCCESS.json").exists()


def test_scores(job: Job) -> None:
    job.input(context=["a", None, "c"], continuation=["x", "y", None])
    assert job.run("-o", "task=score") == 3
    first, second, third = job.rows()
    assert [row["error_code"] for row in (first, second, third)] == [None, "null_prompt", "null_prompt"]
    assert isinstance(first["logprob"], float)
    assert isinstance(first["is_greedy"], bool)
    assert first["num_tokens"] == 3
    assert second["logprob"] is None


def test_choices(job: Job) -> None:
    choices = pa.array([["x", "y", "zz"], ["x"], None, [], ["x", None]], pa.list_(pa.string()))
    job.input(context=["a", "b", "c", "d", "e"], choices=choices)
    job.settings["task"] = "score"
    assert job.run() == 3
    rows = job.rows()
    assert [row["error_code"] for row in rows] == [None, None, "null_prompt", "no_choices", "bad_type"]
    assert len(rows[0]["logprob"]) == len(rows[0]["is_greedy"]) == len(rows[0]["num_tokens"]) == 3
    assert rows[0]["best_choice"] == max(range(3), key=lambda i: rows[0]["logprob"][i])
    assert rows[1]["best_choice"] == 0


def test_scores_of_token_ids(job: Job) -> None:
    job.input(context=[[1, 2], [1, 2, 3]], choices=[[[1], [2]], [[3]]])
    job.settings["task"] = "score"
    job.set(model__tokenizer=None, input__max_prompt_tokens=2)
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "prompt_too_long"]


def test_a_column_sampling_without_any_object_makes_bad_rows(job: Job) -> None:
    job.lines('{"prompt": "a", "sampling": [1]}', '{"prompt": "a"}')
    assert job.run() == 3
    bad, ok = job.rows()
    assert (bad["error_code"], bad["error"], ok["status"]) == (
        "bad_type",
        "sampling: got a list, expected an object",
        "ok",
    )
