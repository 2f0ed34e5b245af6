"""Parts: columns and types, order, footers, and that nothing about a run's luck shows in them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from ..conftest import Job

GENERATED = [
    ("sample_index", pa.int32()),
    ("completion", pa.string()),
    ("finish_reason", pa.string()),
    ("stop_reason", pa.string()),
    ("status", pa.string()),
    ("error_code", pa.string()),
    ("error", pa.string()),
    ("prompt_tokens", pa.int32()),
    ("completion_tokens", pa.int32()),
    ("cumulative_logprob", pa.float64()),
]
STATUS = [("status", pa.string()), ("error_code", pa.string()), ("error", pa.string())]


def test_columns_of_generate(job: Job) -> None:
    assert job.run() == 0
    assert job.table().schema.remove_metadata() == pa.schema([("id", pa.string()), ("prompt", pa.string()), *GENERATED])


def test_columns_that_are_asked_for(job: Job) -> None:
    job.set(output__token_ids=True, output__logprobs=True, output__input_columns="none")
    assert job.run() == 0
    asked = [("token_ids", pa.list_(pa.int32())), ("token_logprobs", pa.list_(pa.float32()))]
    assert job.table().schema.remove_metadata() == pa.schema([("id", pa.string()), *GENERATED, *asked])
    row = job.rows()[0]
    assert len(row["token_ids"]) == len(row["token_logprobs"]) == row["completion_tokens"]
    assert sum(row["token_logprobs"]) == pytest.approx(row["cumulative_logprob"])


@pytest.mark.parametrize("as_choices", [False, True])
def test_columns_of_score(job: Job, as_choices: bool) -> None:
    job.settings["task"] = "score"
    scores = [("logprob", pa.float64()), ("is_greedy", pa.bool_()), ("num_tokens", pa.int32())]
    if as_choices:
        job.input(context=["a"], choices=[["x", "y"]])
        lists = [(name, pa.list_(kind)) for name, kind in scores]
        expected = [("context", pa.string()), ("choices", pa.list_(pa.string())), *lists, *STATUS]
        expected += [(f"best_choice{norm}", pa.int32()) for norm in ("", "_norm", "_bytes")]
    else:
        job.input(context=["a"], continuation=["x"])
        expected = [("context", pa.string()), ("continuation", pa.string()), *scores, *STATUS]
        expected.append(("num_bytes", pa.int64()))
    assert job.run() == 0
    found = job.table().schema.remove_metadata()
    assert found.names == [name for name, _ in expected]
    assert [str(kind).replace("element", "item") for kind in found.types] == [str(kind) for _, kind in expected]


@pytest.mark.parametrize("ids", [False, True])
def test_columns_of_choices_with_answers(job: Job, ids: bool) -> None:
    job.settings["task"] = "score"
    job.input(context=[[1]] if ids else ["a"], choices=[[[2], [3]]] if ids else [["x", "y"]], answer=[1])
    assert job.run() == 0
    norms = [""] if ids else ["", "_norm", "_bytes"]
    last = [(f"best_choice{norm}", pa.int32()) for norm in norms] + [(f"correct{norm}", pa.bool_()) for norm in norms]
    assert [(field.name, field.type) for field in job.table().schema][-len(last) :] == last
    (row,) = job.rows()
    assert all(row[f"correct{norm}"] == (row[f"best_choice{norm}"] == 1) for norm in norms)


def test_bytes_of_what_is_scored(job: Job) -> None:
    job.settings["task"] = "score"
    job.input(context=["a", "b"], continuation=["é ", ""])
    assert job.run() == 0
    assert [row["num_bytes"] for row in job.rows()] == [3, 0]
    job.input(text=[[1, 2]]).set(output__path=str(job.folder / "ids"))
    assert job.run() == 0
    assert [row["num_bytes"] for row in job.rows()] == [None]


@pytest.mark.parametrize("as_choices", [False, True])
def test_tokens_of_scores_on_request(job: Job, as_choices: bool) -> None:
    job.settings["task"] = "score"
    job.set(output__token_ids=True, output__logprobs=True)
    ending = {"choices": [["x", "y"]]} if as_choices else {"continuation": ["x"]}
    assert job.input(context=["a"], **ending).run() == 0
    (row,) = job.rows()
    names = ("logprob", "num_tokens", "token_ids", "token_logprobs")
    columns = [row[name] if as_choices else [row[name]] for name in names]
    for logprob, num_tokens, token_ids, token_logprobs in zip(*columns, strict=True):
        assert len(token_ids) == len(token_logprobs) == num_tokens
        assert sum(token_logprobs) == pytest.approx(logprob)


def test_documents_without_a_context(job: Job) -> None:
    job.settings["task"] = "score"
    job.input(continuation=["a", "b"])
    assert job.run() == 2
    assert job.set(input__columns={"context": None}).run() == 0
    expected = job.rows()
    assert [row["status"] for row in expected] == ["ok", "ok"]
    job.input(text=["a", "b"]).set(input__columns={}, output__path=str(job.folder / "texts"))
    assert job.run() == 0
    assert [row["logprob"] for row in job.rows()] == [row["logprob"] for row in expected]


def test_columns_do_not_depend_on_the_rows(job: Job) -> None:
    job.input(prompt=pa.array([None], pa.string()))
    assert job.run() == 3
    assert job.table().schema.remove_metadata() == pa.schema([("prompt", pa.string()), *GENERATED])


def test_rows_are_in_input_order_with_their_samples(job: Job) -> None:
    assert job.set(sampling__n=3).run() == 0
    rows = [(row["id"], row["sample_index"]) for row in job.rows()]
    assert rows == [(f"row-{i}", sample) for i in range(30) for sample in range(3)]
    assert len({row["completion"] for row in job.rows()}) == 90


def test_columns_of_every_type_pass_through(job: Job) -> None:
    columns = {
        "prompt": ["a", "b", None],
        "nested": [{"x": [1, 2], "y": "z"}, None, {"x": None, "y": None}],
        "when": pa.array([datetime.datetime(2024, 1, 1), None, None], pa.timestamp("us", "UTC")),
        "day": pa.array([datetime.date(2024, 1, 1), None, None]),
        "raw": [b"\x00\xff", b"", None],
        "word": pa.array(["u", "v", "u"]).dictionary_encode(),
        "large": pa.array(["l", None, "m"], pa.large_string()),
        "nothing": pa.nulls(3),
        "fixed": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    }
    job.input(**columns).set(sampling__n=2)
    assert job.run() == 3
    written = pq.read_table(job.folder / "prompts.parquet")
    found = job.table().select(written.column_names)
    assert found.schema.remove_metadata() == written.schema.remove_metadata()
    first, second, null_prompt = written.to_pylist()
    assert found.to_pylist() == [first, first, second, second, null_prompt]


def test_some_input_columns(job: Job) -> None:
    assert job.set(output__input_columns=["id"]).run() == 0
    assert job.table().column_names[:2] == ["id", "sample_index"]


@pytest.mark.parametrize("wanted", ["none", [], ["prompt"]])
def test_the_id_is_always_kept(job: Job, wanted: object) -> None:
    job.input(prompt=["a", "b"], uid=[3, 4], other=[5, 6]).set(output__input_columns=wanted)
    passed = ["prompt"] if wanted == ["prompt"] else []
    assert job.run() == 0
    assert job.table().column_names[: len(passed) + 1] == [*passed, "sample_index"]
    job.set(input__columns={"id": "uid"}, output__path=str(job.folder / "with-id"))
    assert job.run() == 0
    assert job.table().column_names[: len(passed) + 2] == [*passed, "uid", "sample_index"]
    assert job.table()["uid"].to_pylist() == [3, 4]


def test_columns_under_other_names(job: Job) -> None:
    """The input has columns with the names of the output, and `row`, which segments have too."""
    job.input(prompt=["a", "b"], status=["x", "y"], completion=[1, 2], row=["p", "q"], sample_index=[7, 8])
    names = {"status": "job_status", "completion": "status_2", "sample_index": "error", "error": "row_error"}
    job.set(output__columns=names, sampling__n=2)
    assert job.run() == 0
    table = job.table()
    assert table.column_names[:5] == ["prompt", "status", "completion", "row", "sample_index"]
    assert table.column_names[5:] == [names.get(name, name) for name, _ in GENERATED]
    rows = [(row["row"], row["status"], row["completion"], row["sample_index"], row["error"]) for row in job.rows()]
    assert rows == [("p", "x", 1, 7, 0), ("p", "x", 1, 7, 1), ("q", "y", 2, 8, 0), ("q", "y", 2, 8, 1)]
    assert {row["job_status"] for row in job.rows()} == {"ok"}
    assert json.loads((job.state / "report.json").read_text())["rows"] == {"ok": 4}


def test_footers_and_success(job: Job) -> None:
    assert job.set(sampling__seed=5).run() == 0
    success = json.loads((job.state / "_SUCCESS.json").read_text())
    started = json.loads((job.state / "job.json").read_text())
    for index, path in enumerate(sorted(job.output.iterdir())):
        assert path.name == f"part-{index:05d}-of-00003.parquet"
        footer = pq.read_metadata(path).metadata
        assert footer[b"rwkv_batch.unit"] == str(index).encode()
        assert footer[b"rwkv_batch.fingerprint"] == started["fingerprint"].encode()
        assert footer[b"rwkv_batch.seed"] == b"5"
        assert footer[b"rwkv_batch.version"] == started["version"].encode()
        assert success["parts"][index] == {"name": path.name, "rows": 10, "errors": 0, "bytes": path.stat().st_size}
    assert (success["rows"], success["errors"]) == (30, 0)


def test_the_output_folder_holds_parts_and_nothing_else(job: Job) -> None:
    assert job.run() == 0
    assert all(path.suffix == ".parquet" for path in job.output.rglob("*"))
    assert pyarrow.dataset.dataset(job.output).count_rows() == 30
    assert not list(job.state.glob("unit-*")) and not list((job.state / "tmp").iterdir())


def test_two_runs_give_the_same_bytes(job: Job, tmp_path: Path) -> None:
    assert job.run() == 0
    first = job.parts()
    job.set(output__path=str(tmp_path / "again"), output__flush_seconds=0, engine__max_batch_size=2)
    assert job.run() == 0
    assert job.parts() == first


def test_an_empty_input_gives_an_empty_part(job: Job) -> None:
    job.input(prompt=pa.array([], pa.string()))
    assert job.run() == 0
    assert job.table().schema.names[:2] == ["prompt", "sample_index"]
    assert job.table().num_rows == 0
    assert json.loads((job.state / "_SUCCESS.json").read_text())["rows"] == 0


def test_limit(job: Job) -> None:
    assert job.run("-o", "input.limit=12") == 0
    assert [row["id"] for row in job.rows()] == [f"row-{i}" for i in range(12)]


def test_large_units_have_row_groups_of_a_useful_size(job: Job) -> None:
    job.input(prompt=["p"] * 9000).set(output__rows_per_part=9000)
    assert job.run() == 0
    metadata = pq.read_metadata(next(job.output.iterdir()))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4096, 4096, 808]


def test_jsonl_in_several_files(job: Job) -> None:
    (job.folder / "in").mkdir()
    for name, rows in (("in/b.jsonl", range(7, 23)), ("in/a.jsonl", range(7))):
        job.lines(*(json.dumps({"prompt": f"p{i}", "meta": {"i": i}}) for i in rows), name=name)
    job.set(input__path=str(job.folder / "in"))
    assert job.run() == 0
    assert [row["meta"]["i"] for row in job.rows()] == list(range(23))
