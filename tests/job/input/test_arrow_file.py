"""Arrow IPC files: both formats, any range of rows."""

from __future__ import annotations

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
