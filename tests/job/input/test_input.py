"""Reading: formats, places, several files, and what is refused before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.files import find_files, would_be_read
from rwkv_batch.job.input.formats import EXTENSIONS
from rwkv_batch.job.input.reader import Input, open_input


def write(path: Path, rows: range, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"i": list(rows), "prompt": [f"p{i}" for i in rows]}), path, **options)


def read(source: Input, start: int, stop: int, column: str = "i") -> list[Any]:
    return [value for rows in source.read(start, stop, [column]) for value in rows.batch[column].to_pylist()]


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
    assert all(rows.batch.schema.types == source.schema.types for rows in source.read(0, 3, ["i", "x", "y"]))


def test_a_torn_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ConfigurationError, match="not readable as parquet"):
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
    assert "two columns named 'i'" in open_input(str(tmp_path), "auto", {}).contradictions["i"]


def test_would_be_read(tmp_path: Path) -> None:
    part = str(tmp_path / "in" / "out" / "part-0.parquet")
    assert would_be_read(str(tmp_path / "in"), part)
    assert would_be_read(["x", f"file://{tmp_path}/**/*.parquet"], part)
    assert not would_be_read(str(tmp_path / "in" / "*.parquet"), part)
    assert not would_be_read(str(tmp_path / "inner"), part)
    assert not would_be_read("s3://in", part)
