"""JSON Lines: types of columns over all files, ranges of rows, bad lines, compressed files."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input import jsonl
from rwkv_batch.job.input import lines as lines_module
from rwkv_batch.job.input.json_kinds import INTEGER, STRING, ListOf
from rwkv_batch.job.input.lines import read_lines
from rwkv_batch.job.input.reader import Input, open_input
from rwkv_batch.job.input.roles import SAMPLING_KINDS

from ..conftest import Job


def read(source: Input, start: int, stop: int, column: str = "i") -> list[Any]:
    return [value for rows in source.read(start, stop, [column]) for value in rows.batch[column].to_pylist()]


def lines(tmp_path: Path, *records: Any) -> Input:
    text = "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records)
    (tmp_path / "p.jsonl").write_text(text)
    return open_input(str(tmp_path / "p.jsonl"), "auto", {"prompt": STRING, "ids": ListOf(INTEGER)})


def test_types_are_found_over_the_whole_file(tmp_path: Path) -> None:
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
            ("e", pa.string()),
            ("prompt", pa.string()),
            ("f", pa.int64()),
        ]
    )
    assert read(source, 0, 2, "d") == [{"x": 1, "y": None}, {"x": None, "y": True}]
    assert read(source, 0, 2, "b") == [1.0, 1.5]
    assert read(source, 0, 2, "e") == ["{}", None]


def test_bad_lines_and_cells_spoil_their_row_only(tmp_path: Path) -> None:
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
    (rows,) = source.read(0, 6, ["prompt", "ids"])
    assert {row: error.code for row, error in rows.errors.items()} == {
        0: "bad_type",
        2: "bad_json",
        3: "bad_json",
        4: "bad_type",
        5: "invalid_text",
    }


def test_of_the_wrong_type_throughout_keeps_the_expected_type(tmp_path: Path) -> None:
    assert lines(tmp_path, {"prompt": 5}, {"prompt": None}).schema.field("prompt").type == pa.string()


def test_ranges_start_at_bookmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BOOKMARK_ROWS", 4)
    monkeypatch.setattr(jsonl, "BATCH_ROWS", 3)
    records = [{"i": i, "prompt": "é" * i} for i in range(18)]
    source = lines(tmp_path, *(text for record in records for text in ("", json.dumps(record, ensure_ascii=False))))
    for start in range(19):
        for stop in range(start, 19):
            assert read(source, start, stop) == list(range(start, stop))
    offsets: list[int] = []
    monkeypatch.setattr(jsonl, "read_lines", lambda *given: offsets.append(given[-1]) or read_lines(*given))
    read(source, 9, 10)
    (offset,) = offsets
    assert (tmp_path / "p.jsonl").read_bytes()[:offset].count(b"{") == 8


@pytest.mark.parametrize(
    "values",
    [
        [1, "2b"],
        ["none", {"a": 1}],
        [[0, 4, "Protein"]],
        [{"b": [True, 1]}],
        [0.5, 2**60 + 1, 1],
        [2**64],
        [-1, 2**63],
        [10**30, 0.5],
        [{"deep": {}}, {"deep": {}}],
        [True, 1],
        [{f"k{i}": i} for i in range(1500)],
    ],
    ids=lambda values: json.dumps(values)[:20],
)
def test_values_without_a_common_type_come_out_as_json_text(tmp_path: Path, values: list[Any]) -> None:
    source = lines(tmp_path, *({"a": value} for value in values), {"a": None}, {})
    assert source.schema.field("a").type == pa.string()
    *texts, null, missing = read(source, 0, source.num_rows, "a")
    assert [json.loads(text) for text in texts] == values
    assert [type(json.loads(text)) for text in texts] == [type(value) for value in values]
    assert (null, missing) == (None, None)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 2**64 - 1], pa.uint64()), ([-(2**63), 2**63 - 1], pa.int64()), ([2**53, 0.5, -(2**53)], pa.float64())],
)
def test_numbers_with_a_common_type_keep_it(tmp_path: Path, values: list[Any], kind: pa.DataType) -> None:
    source = lines(tmp_path, *({"a": value} for value in values))
    assert source.schema.field("a").type == kind
    assert read(source, 0, len(values), "a") == values


def test_all_files_have_the_same_types(tmp_path: Path) -> None:
    for name, values in (("a", [1, None]), ("b", ["x"]), ("c", [])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"i": i, "x": 2**63 + 1}) + "\n" for i in values))
    source = open_input(str(tmp_path), "auto", {"x": INTEGER})
    assert source.schema == pa.schema([("i", pa.string()), ("x", pa.uint64())])
    assert read(source, 0, 3) == ["1", None, '"x"']


@pytest.mark.parametrize("depth", [30, 99, 100, 480, 990])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_deep_values(job: Job, brackets: str, depth: int) -> None:
    error = "bad_json" if depth > 99 else None
    deep = brackets[:-1] * depth + ("1" if brackets != "[]" else "") + brackets[-1] * depth
    job.lines('{"prompt": "a", "x": 1}', f'{{"prompt": "b", "x": {deep}}}', '{"prompt": "c"}')
    assert job.run() == (3 if error else 0)
    assert [row["error_code"] for row in job.rows()] == [None, error, None]
    if error is None:
        assert json.loads(job.rows()[1]["x"]) == json.loads(deep)


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "\xed\xa0\xbd\xed\xb8\x80"}',
        b'{"prompt": "b", "x": "\xff"}',
        b'{"prompt": "b", "\xed\xa0\xbd": 1}',
        b'{"prompt": "b", "x": {"\\udc00": 1}}',
        '{"prompt": "é"}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["prompts.jsonl", "requests.jsonl"])
def test_text_that_is_no_unicode_makes_a_bad_row(job: Job, name: str, line: bytes) -> None:
    others = [b'{"prompt": "a"}', b'{"prompt": "c"}']
    if name == "requests.jsonl":
        line, *others = [b'{"custom_id": "i", "body": ' + body + b"}" for body in (line, *others)]
    (job.folder / name).write_bytes(b"\n".join((others[0], line, others[1])))
    job.set(input__path=str(job.folder / name))
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, "invalid_text", None]


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_files(job: Job, suffix: str) -> None:
    text = "".join(f'{{"prompt": "p{i}"}}\n' for i in range(25)).encode()
    compress = COMPRESSIONS[suffix]
    (job.folder / "in").mkdir()
    (job.folder / f"in/a.jsonl{suffix}").write_bytes(compress(text[:100]) + compress(text[100:]))
    job.set(input__path=str(job.folder / "in"))
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == [f"p{i}" for i in range(25)]
    (job.folder / f"in/a.jsonl{suffix}").write_bytes(compress(text)[:-5])
    with pytest.raises(ConfigurationError, match="not readable: Truncated"):
        open_input(str(job.folder / "in"), "auto", {})


def test_ranges_of_a_compressed_file_go_on_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(b'{"i": %d}\n' % i for i in range(1000))))
    source = open_input(str(tmp_path), "auto", {})
    opened: list[Any] = []
    monkeypatch.setattr(jsonl, "read_lines", lambda *given: opened.append(given) or read_lines(*given))
    ranges = [(0, 10), (10, 500), (700, 710), (710, 1000)]
    assert [read(source, start, stop) for start, stop in ranges] == [[*range(*one)] for one in ranges]
    assert len(opened) == 1
    assert read(source, 5, 7) == [5, 6]
    assert len(opened) == 2


def test_byte_order_marks(job: Job) -> None:
    job.lines('\ufeff{"prompt": "a"}', '{"prompt": "b"}', name="prompts.txt")
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == ["a", "b"]
    (job.folder / "prompts.txt").write_text('{"prompt": "a"}', encoding="utf-16")
    with pytest.raises(ConfigurationError, match="is text in UTF-16, expected UTF-8"):
        open_input(str(job.folder / "prompts.txt"), "jsonl", {})


def test_a_folder_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"i": 1}\n{"i": 2}')
    (tmp_path / "b.json").write_text("\n")
    assert read(open_input(str(tmp_path), "auto", {}), 0, 2) == [1, 2]
    (tmp_path / "c.jsonl").write_text('{"i": 3}')
    source = open_input(str(tmp_path), "auto", {})
    assert [file.name for file in source.files] == [str(tmp_path / "c.jsonl")]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"}]', "one JSON array"),
        ('[\n{"prompt": "a"},\n{"prompt": "b"}\n]\n', "one JSON array"),
        ('[{"prompt": "a"},\n {"prompt": "b"}]\n', "one JSON array"),
        (json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=1), "one JSON array"),
        (json.dumps({"prompt": "a", "x": [{}]}, indent=2), "JSON with line breaks inside"),
        ("\n".join(json.dumps({"prompt": text, "x": []}, indent=2) for text in "ab"), "JSON with line breaks inside"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_json_that_is_not_in_lines_is_named(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=f"is {named}, expected JSON Lines"):
        open_input(str(tmp_path / name), "auto", {})


def test_lines_longer_than_a_block_are_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 16)
    records = [{"i": i, "prompt": "x" * length} for i, length in enumerate((0, 100, 3, 15, 16, 17, 40))]
    source = lines(tmp_path, *records)
    assert read(source, 0, 7, "prompt") == [record["prompt"] for record in records]


def test_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 100)
    source = lines(tmp_path, *({"prompt": "x" * 80} for _ in range(5)))
    assert [rows.batch.num_rows for rows in source.read(0, 5, ["prompt"])] == [2, 2, 1]


def test_messages_in_every_form(job: Job) -> None:
    user = {"role": "user", "content": "ab"}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    forms = [[user], [parts], json.dumps([parts]), {"role": ["user"], "content": ["ab"]}, [image], 5, None]
    job.lines(*(json.dumps({"messages": form}) for form in forms))
    assert job.run() == 3
    rows = job.rows()
    assert [row["messages"] for row in rows] == [[user]] * 4 + [None] * 3
    assert [row["error_code"] for row in rows] == [None] * 4 + ["bad_messages", "bad_messages", "null_prompt"]
    assert "text only" in rows[4]["error"]


def test_schemas_are_objects_or_text(job: Job, tmp_path: Path) -> None:
    schema = {"enum": ["left", "right"]}
    text = json.dumps(schema)
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"schema": value}) for value in (schema, text, None)))
    source = open_input(str(tmp_path / "p.jsonl"), "auto", {"schema": SAMPLING_KINDS["json_schema"]})
    assert read(source, 0, 3, "schema") == [text, text, None]

    job.lines(*(json.dumps({"prompt": "a", "sampling": {"json_schema": value}}) for value in (schema, text, [schema])))
    assert job.run() == 3
    assert [row["error_code"] for row in job.rows()] == [None, None, "bad_type"]
    assert "expected a JSON schema, as an object or as text" in job.rows()[2]["error"]
