"""Reading: formats, places, several files, and what is refused before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import fake_llm
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input import jsonl
from rwkv_batch.job.input.files import find_files, would_be_read
from rwkv_batch.job.input.formats import EXTENSIONS
from rwkv_batch.job.input.json_kinds import INTEGER, STRING, ListOf
from rwkv_batch.job.input.reader import Input, open_input
from rwkv_batch.job.input.table import READ_ERROR

from ..conftest import Job


def write(path: Path, rows: range, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"i": list(rows), "prompt": [f"p{i}" for i in rows]}), path, **options)


def read(source: Input, start: int, stop: int, column: str = "i") -> list[Any]:
    return [value for batch in source.read(start, stop, [column]) for value in batch[column].to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 rows in three files of different row groups, with files that are no input between them."""
    write(tmp_path / "in" / "a.parquet", range(7), row_group_size=3)
    write(tmp_path / "in" / "b" / "c.parquet", range(7, 8))
    write(tmp_path / "in" / "d.parquet", range(8, 20), row_group_size=5)
    write(tmp_path / "in" / ".hidden.parquet", range(90, 99))
    write(tmp_path / "in" / "_private" / "x.parquet", range(90, 99))
    (tmp_path / "in" / "README.md").write_text("no rows")
    return tmp_path / "in"


def test_any_range_of_rows_over_files_and_row_groups(folder: Path) -> None:
    source = open_input(str(folder), "auto", {})
    assert source.num_rows == 20
    for start in range(21):
        for stop in range(start, 21):
            assert read(source, start, stop) == list(range(start, stop))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in", 20),
        ("in/*.parquet", 19),
        ("in/**/*.parquet", 20 + 9),
        ("in/[ab].parquet", 7),
        ("in/?.parquet", 19),
        ("in/b/../a.parquet", 7),
        ("in/[!a].parquet", 12),
        ("in/*/c.parquet", 1),
        ("file://{}/in/b", 1),
        (["in/a.parquet", "in/b", "in/a.parquet"], 8),
    ],
)
def test_paths(folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: Any, expected: int) -> None:
    monkeypatch.chdir(folder.parent)
    paths = pattern.format(folder.parent) if isinstance(pattern, str) else pattern
    assert open_input(paths, "auto", {}).num_rows == expected


@pytest.mark.parametrize("path", ["nothing.parquet", "in/*.orc", "empty", "nosuchscheme://x/y"])
def test_paths_that_mean_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (folder.parent / "empty").mkdir()
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigurationError, match=r"input.path: .*" + path.split(":")[0].replace("*", r"\*")):
        find_files(path, EXTENSIONS)


def test_files_in_an_fsspec_file_system() -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/bucket/x/p.parquet", "wb") as file:
        pq.write_table(pa.table({"i": [1, 2, 3]}), file)
    for path in ("memory://bucket/x/p.parquet", "memory://bucket/x", "memory://bucket/*/*.parquet"):
        source = open_input(path, "auto", {})
        assert read(source, 0, 3) == [1, 2, 3]
        assert source.manifest()[0]["rows"] == 3


def test_s3_paths_go_to_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_uri(uri: str) -> None:
        asked.append(uri)
        raise OSError("no network here")

    monkeypatch.setattr(
        "rwkv_batch.job.input.files.fs.FileSystem", type("FS", (), {"from_uri": staticmethod(from_uri)})
    )
    with pytest.raises(ConfigurationError, match="no network here"):
        find_files("s3://bucket/a/*.parquet?region=eu-west-1", EXTENSIONS)
    assert asked == ["s3://bucket?region=eu-west-1"]


def test_columns_that_some_files_lack_are_null_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": [1], "x": pa.nulls(1)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": ["b"], "i": [2]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"i": [3], "x": ["c"]}), tmp_path / "c.parquet")
    source = open_input(str(tmp_path), "auto", {})
    assert source.schema.names == ["i", "x", "y"]
    assert [read(source, 0, 3, name) for name in "ixy"] == [[1, 2, 3], [None, None, "c"], [None, "b", None]]
    assert all(batch.schema.types == source.schema.types for batch in source.read(0, 3, ["i", "x", "y"]))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [({"i": ["text"]}, "b.parquet: its columns differ"), (None, "b.parquet: not readable as parquet")],
)
def test_files_that_do_not_go_together(tmp_path: Path, columns: Any, expected: str) -> None:
    write(tmp_path / "a.parquet", range(2))
    if columns is None:
        (tmp_path / "b.parquet").write_bytes(b"PAR1 torn")
    else:
        pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    with pytest.raises(ConfigurationError, match=expected):
        open_input(str(tmp_path), "auto", {})


def test_a_file_that_lacks_every_column_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2))
    pq.write_table(pa.table({"x": [7, 8, 9]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"y": 1}\n{}\n')
    assert read(open_input(str(tmp_path / "*.parquet"), "auto", {}), 1, 4) == [1, None, None]
    both = [str(tmp_path / "c.jsonl"), str(tmp_path / "d.jsonl")]
    (tmp_path / "d.jsonl").write_text('{"i": 5}\n')
    assert read(open_input(both, "auto", {}), 0, 3) == [None, None, 5]


def test_formats_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2))
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match="found jsonl and parquet files together"):
        open_input(str(tmp_path), "auto", {})


def test_a_name_without_extension_is_recognised_by_content(tmp_path: Path) -> None:
    write(tmp_path / "rows", range(3))
    (tmp_path / "lines").write_text('{"i": 7}\n')
    (tmp_path / "noise").write_text("i,prompt\n")
    assert read(open_input(str(tmp_path / "rows"), "auto", {}), 0, 3) == [0, 1, 2]
    assert read(open_input(str(tmp_path / "lines"), "auto", {}), 0, 1) == [7]
    with pytest.raises(ConfigurationError, match="noise: unknown format"):
        open_input(str(tmp_path / "noise"), "auto", {})


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["i", "i"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigurationError, match="two columns named 'i'"):
        open_input(str(tmp_path), "auto", {})


def test_would_be_read(tmp_path: Path) -> None:
    part = str(tmp_path / "in" / "out" / "part-0.parquet")
    assert would_be_read(str(tmp_path / "in"), part)
    assert would_be_read(["x", f"file://{tmp_path}/**/*.parquet"], part)
    assert not would_be_read(str(tmp_path / "in" / "*.parquet"), part)
    assert not would_be_read(str(tmp_path / "inner"), part)
    assert not would_be_read("s3://in", part)


def lines(tmp_path: Path, *records: Any) -> Input:
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    (tmp_path / "p.jsonl").write_text(text)
    return open_input(str(tmp_path / "p.jsonl"), "auto", {"prompt": STRING, "ids": ListOf(INTEGER)})


def test_jsonl_types_are_found_over_the_whole_file(tmp_path: Path) -> None:
    source = lines(
        tmp_path,
        {"a": None, "b": 1, "c": [], "d": {"x": 1}, "e": {}, "prompt": "p"},
        "",
        {"a": "text", "b": 1.5, "c": [[1]], "d": {"y": True}, "f": 2**53},
    )
    d = pa.struct([("x", pa.int64()), ("y", pa.bool_())])
    assert source.schema == pa.schema(
        [
            ("a", pa.string()),
            ("b", pa.float64()),
            ("c", pa.list_(pa.list_(pa.int64()))),
            ("d", d),
            ("e", pa.null()),
            ("prompt", pa.string()),
            ("f", pa.int64()),
        ]
    )
    assert read(source, 0, 2, "d") == [{"x": 1, "y": None}, {"x": None, "y": True}]
    assert read(source, 0, 2, "b") == [1.0, 1.5]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("x", 1, "row 1: column 'a': got an integer here and a string above"),
        ([1], {"b": 1}, "got an object here and a list of an integer above"),
        ([1], ["x"], "got a string here and an integer above"),
        (True, 1, "got an integer here and true or false above"),
        (1, 2**64, "an integer beyond 64 bits"),
    ],
)
def test_jsonl_contradictions(tmp_path: Path, first: Any, second: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        lines(tmp_path, {"a": first}, {"a": second})


def test_jsonl_bad_lines_and_cells_spoil_their_row_only(tmp_path: Path) -> None:
    source = lines(
        tmp_path,
        {"prompt": 5, "ids": "x"},
        {"prompt": "good", "ids": [1]},
        "{torn",
        "[1]",
        {"prompt": ["list"], "ids": [1, "x"]},
        '{"prompt": "half a pair \\ud800"}',
    )
    assert source.schema.field("prompt").type == pa.string()
    assert read(source, 0, 6, "prompt") == [None, "good", None, None, None, None]
    errors = read_errors(source, ["prompt", "ids"])
    assert [error and error.partition(":")[0] for error in errors] == [
        "bad_type",
        None,
        "bad_json",
        "bad_json",
        "bad_type",
        "invalid_text",
    ]


def read_errors(source: Input, columns: list[str]) -> list[str | None]:
    batches = source.read(0, source.num_rows, columns)
    return [error for batch in batches for error in batch[READ_ERROR].to_pylist()]


def test_jsonl_of_the_wrong_type_throughout_keeps_the_expected_type(tmp_path: Path) -> None:
    assert lines(tmp_path, {"prompt": 5}, {"prompt": None}).schema.field("prompt").type == pa.string()


def test_jsonl_ranges_start_at_bookmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BOOKMARK_ROWS", 4)
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 3)
    records = [{"i": i, "prompt": "é" * i} for i in range(18)]
    source = lines(tmp_path, *(text for record in records for text in ("", json.dumps(record, ensure_ascii=False))))
    for start in range(19):
        for stop in range(start, 19):
            assert read(source, start, stop) == list(range(start, stop))
    offsets: list[int] = []
    lines_from = jsonl.JsonlTable._lines
    monkeypatch.setattr(jsonl.JsonlTable, "_lines", lambda t, offset: offsets.append(offset) or lines_from(t, offset))
    read(source, 9, 10)
    (offset,) = offsets
    assert (tmp_path / "p.jsonl").read_bytes()[:offset].count(b"{") == 8


def request(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_openai_batch(job: Job) -> None:
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
        ("three", 0, "bad_sampling"),
        ("four", 0, "bad_messages"),
        ("five", 0, "bad_type"),
        ("six", 0, "bad_json"),
        ("seven", 0, None),
    ]
    assert [row["prompt_tokens"] for row in rows[:2]] == [len("User: hi\n\nAssistant:"), len("User: ab\n\nAssistant:")]
    assert rows[0]["completion_tokens"] <= 3
    assert "body.tools is not supported" in rows[3]["error"]
    assert fake_llm.LLM.loaded == 1


def test_openai_batch_completions(job: Job) -> None:
    job.lines(request("a", prompt="hello"), request("b", prompt="world"))
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == ["hello", "world"]


def test_openai_batch_bad_cells_spoil_their_row_only(job: Job) -> None:
    job.lines(
        request("one", prompt="hello", logit_bias={"5": -100}, stop="x"),
        request("two", prompt="hello", logit_bias={"6": "much"}),
        request("three", prompt=[1, 2], stop=["y"]),
        request("four", prompt="hello", stop=[["y"]]),
    )
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "bad_type", "bad_type", "bad_type"]
    assert job.rows()[2]["error"] == "got prompt_token_ids, expected prompt as in the requests above"


def test_openai_batch_fields_that_mean_off(job: Job) -> None:
    off = {"logprobs": False, "response_format": {"type": "text"}, "tools": None}
    job.lines(
        request("one", prompt="hello", **off),
        request("two", prompt="hello", logprobs=0),
        request("three", prompt="hello", response_format={"type": "json_object"}),
    )
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "bad_sampling", "bad_sampling"]
