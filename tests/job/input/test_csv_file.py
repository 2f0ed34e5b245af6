"""CSV and TSV files: types over all files, nulls, bad rows, ranges of rows."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input import csv_file
from rwkv_batch.job.input.json_kinds import INTEGER
from rwkv_batch.job.input.reader import Input, open_input

from ..conftest import Job


def read(source: Input, start: int, stop: int, column: str) -> list[Any]:
    return [value for rows in source.read(start, stop, [column]) for value in rows.batch[column].to_pylist()]


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", "-20", ""], pa.int64(), [1, -20, None]),
        (["0", str(2**64 - 1)], pa.uint64(), [0, 2**64 - 1]),
        (["-1", str(2**63)], pa.string(), ["-1", str(2**63)]),
        (["007", "1"], pa.string(), ["007", "1"]),
        (["1", "2.5e3", "-.5"], pa.float64(), [1.0, 2500.0, -0.5]),
        ([str(2**60 + 1), "0.5"], pa.string(), [str(2**60 + 1), "0.5"]),
        (["true", "False", ""], pa.bool_(), [True, False, None]),
        (["NA", "1", '""'], pa.string(), ["NA", "1", ""]),
        (["", ""], pa.string(), [None, None]),
        (['"a, ""b""\nc"', "é"], pa.string(), ['a, "b"\nc', "é"]),
    ],
)
def test_types(tmp_path: Path, texts: list[str], kind: pa.DataType, values: list[Any]) -> None:
    (tmp_path / "a.csv").write_text("\ufeffx,y\n" + "".join(f"{text},z\n" for text in texts))
    source = open_input(str(tmp_path), "auto", {})
    assert source.schema.field("x").type == kind
    assert read(source, 0, len(texts), "x") == values


def test_types_are_found_over_all_blocks_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 64)
    rows = [f"{i},{i}" for i in range(100)]
    (tmp_path / "a.csv").write_text("x,y\n" + "\n".join([*rows, "0.5,1"]))
    (tmp_path / "b.csv").write_text("y,z\nword,1\n")
    (tmp_path / "c.csv").write_text("")
    source = open_input(str(tmp_path), "auto", {})
    assert source.schema == pa.schema([("x", pa.float64()), ("y", pa.string()), ("z", pa.int64())])
    assert read(source, 0, 102, "x") == [*map(float, range(100)), 0.5, None]
    assert read(source, 98, 102, "y") == ["98", "99", "1", "word"]


@pytest.mark.parametrize("block", [64, 1 << 20])
def test_bad_rows_stay_in_their_places(job: Job, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", block)
    bad = {0: b"x", 7: b"x,1,2,3", 8: b"y,1", 20: b"\xff,1,2", 23: b'\xff,"1",2', 39: b"last"}
    lines = [bad.get(i, b"p%d,%d,1" % (i, i)) for i in range(40)]
    (job.folder / "p.csv.gz").write_bytes(gzip.compress(b"prompt,id,n\n" + b"\n\n".join(lines) + b"\n"))
    job.set(input__path=str(job.folder / "p.csv.gz"))
    assert job.run() == 3
    rows = job.rows()
    assert [row["prompt"] for row in rows] == [None if i in bad else f"p{i}" for i in range(40)]
    unread = {0, 7, 8, 39}
    assert [row["id"] for row in rows] == [None if i in unread else 1 if i in bad else i for i in range(40)]
    codes = {
        0: "bad_type",
        7: "bad_type",
        8: "bad_type",
        20: "invalid_text",
        23: "invalid_text",
        39: "bad_type",
    }
    assert [row["error_code"] for row in rows] == [codes.get(i) for i in range(40)]


@pytest.mark.parametrize("bad", [range(20), range(10, 30), range(1, 30, 2), range(30)])
def test_more_bad_rows_than_good_ones(tmp_path: Path, bad: range) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "".join("bad\n" if i in bad else f"{i},0\n" for i in range(30)))
    source = open_input(str(tmp_path), "auto", {})
    pieces = [*source.read(0, 30, ["x"])]
    values = [value for rows in pieces for value in rows.batch["x"].to_pylist()]
    assert values == [None if i in bad else i for i in range(30)]
    assert sum(len(rows.errors) for rows in pieces) == len(bad)


def test_roles_decide_on_types(job: Job) -> None:
    (job.folder / "p.tsv").write_text("prompt\tmax_tokens\ttemperature\n1\t2.0\t0\n2\t\thot\n3\tmany\t1\n")
    job.set(input__path=str(job.folder / "p.tsv"))
    assert job.run() == 3
    assert [row["prompt"] for row in job.rows()] == ["1", "2", "3"]
    assert [row["error_code"] for row in job.rows()] == ["bad_type", "bad_type", "bad_type"]


def test_whole_numbers_of_pandas_are_integers(job: Job) -> None:
    (job.folder / "p.csv").write_text("prompt,max_tokens\na,2.0\nb,\n")
    assert job.set(input__path=str(job.folder / "p.csv")).run() == 0


@pytest.mark.parametrize("text", ["", "\n\n", "x,y", "x,y\n", "\n\nx,y\r\n"])
def test_files_without_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    source = open_input(str(tmp_path / "a.csv"), "csv", {})
    assert (source.num_rows, source.schema.names) == (0, ["x", "y"] if "x" in text else [])


def test_a_row_longer_than_a_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_BYTES", 64)
    (tmp_path / "a.csv").write_text("x,y\n" + "x" * 300 + ",1\n")
    with pytest.raises(ConfigurationError, match=r"a row is longer than .* write JSON Lines"):
        open_input(str(tmp_path), "auto", {"y": INTEGER})
