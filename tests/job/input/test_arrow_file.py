"""Arrow IPC files: both formats, any range of rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.reader import open_input

from ..conftest import Job

COLUMNS = {"i": list(range(30)), "prompt": [f"p{i}" for i in range(30)], "x": [{"a": i} for i in range(30)]}


def write(path: Path, kind: str) -> None:
    table = pa.table(COLUMNS)
    if kind == "feather":
        feather.write_feather(table, path, compression="zstd", chunksize=7)
        return
    new: Any = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


@pytest.mark.parametrize("kind", ["file", "stream", "feather"])
def test_a_job(job: Job, kind: str) -> None:
    write(job.folder / "a.arrow", kind)
    assert job.set(input__path=str(job.folder / "a.arrow")).run() == 0
    assert {name: job.table()[name].to_pylist() for name in COLUMNS} == COLUMNS


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_ranges(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.feather", kind)
    source = open_input(str(tmp_path), "auto", {})
    for start in range(31):
        for stop in range(start, 31):
            found = [value for rows in source.read(start, stop, ["i"]) for value in rows.batch["i"].to_pylist()]
            assert found == list(range(start, stop))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.ipc", "stream")
    data = (tmp_path / "a.ipc").read_bytes()
    (tmp_path / "a.ipc").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigurationError, match=r"a.ipc: not readable as arrow"):
        open_input(str(tmp_path), "auto", {})


def test_a_file_without_columns_or_rows(tmp_path: Path) -> None:
    for name, table in (("a.arrow", pa.table({})), ("b.arrow", pa.table({"i": pa.array([], pa.int64())}))):
        with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    assert open_input(str(tmp_path), "auto", {}).num_rows == 0


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_rows_of_damaged_data_are_error_rows(job: Job, kind: str, compression: str | None) -> None:
    """Offsets that point outside of the text end the process where they are used."""
    texts = [f"{i * 7919:030d}" for i in range(40)]
    table = pa.table({"prompt": ["p"] * 40, "text": texts, "list": [[i, i] for i in range(40)]})
    path = job.folder / "a.arrow"
    new: Any = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=10)
    data = bytearray(path.read_bytes())
    if compression is None:
        offsets = pa.array([30 * i for i in range(11)], pa.int32()).buffers()[1].to_pybytes()[:44]
        found = [match.start() for match in re.finditer(re.escape(offsets), data)]
        assert len(found) == 4
        data[found[2] + 8 : found[2] + 12] = b"\xff\xff\xff\x7f"
    else:
        frames = [match.start() for match in re.finditer(re.escape(b"\x04\x22\x4d\x18"), data)]
        assert len(frames) == 4 * 6
        data[frames[2 * 6 + 2]] = 0
    path.write_bytes(data)
    assert job.set(input__path=str(path), sampling__n=2).run() == 3
    output = job.table()
    assert output["error_code"].to_pylist() == [None] * 40 + ["read_error"] * 20 + [None] * 20
    assert "a.arrow: record batch 2, column 'text': " in output["error"][40].as_py()
    assert output["text"].to_pylist() == [
        text for row in (*texts[:20], *[None] * 10, *texts[30:]) for text in (row, row)
    ]
    assert output["list"].to_pylist() == [[i, i] for i in range(40) for _ in range(2)]


def test_text_that_is_not_utf8_is_no_damage(job: Job) -> None:
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], text)
    table = pa.table({"prompt": text, "d": text.dictionary_encode(), "l": lists})
    with pa.ipc.new_file(job.folder / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert job.set(input__path=str(job.folder / "a.arrow")).run() == 3
    assert job.table()["error_code"].to_pylist() == [None, "invalid_text", None]
