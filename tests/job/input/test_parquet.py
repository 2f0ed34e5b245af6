"""Parquet files: damaged pages, encrypted columns, disks that fail, and hostile names of columns."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from job import fake_llm
from rwkv_batch.errors import ConfigurationError, RowError
from rwkv_batch.job.input import parquet
from rwkv_batch.job.input.files import InputFile
from rwkv_batch.job.input.reader import Input, open_input

from ..conftest import Job

ROWS = 3000
GROUP_ROWS = 1000
PAGE_ROWS = 100


def write(path: Path, **options: Any) -> pa.Table:
    """A file of three row groups with pages of 100 rows, each with a checksum."""
    table = pa.table(
        {
            "prompt": [f"prompt {i}" for i in range(ROWS)],
            "id": [f"id {i}" for i in range(ROWS)],
            "nested": [{"a": i} for i in range(ROWS)],
        }
    )
    settings = {"write_page_checksum": True, "compression": "none", "use_dictionary": False, **options}
    pq.write_table(table, path, GROUP_ROWS, data_page_size=1, write_batch_size=PAGE_ROWS, **settings)
    return table


def damage(path: Path, text: bytes) -> None:
    """Changes the only place of a text."""
    data = path.read_bytes()
    assert data.count(text) == 1
    path.write_bytes(data.replace(text, text.swapcase()))


def read(source: Input, columns: Sequence[str], start: int = 0) -> tuple[pa.Table, dict[int, RowError]]:
    batches, errors, row = [], {}, start
    for rows in source.read(start, source.num_rows, columns):
        errors |= {row + index: error for index, error in rows.errors.items()}
        batches.append(rows.batch)
        row += rows.batch.num_rows
    return pa.Table.from_batches(batches), errors


def test_a_damaged_page_spoils_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = write(path)
    damage(path, b"id 1723")
    source = open_input(str(path), "auto", {})
    found, errors = read(source, ["prompt", "id", "nested"])
    assert sorted(errors) == list(range(1512, 2000))  # from the batch with the page to the end of the row group
    assert {error.code for error in errors.values()} == {"read_error"}
    (message,) = {error.message for error in errors.values()}
    assert message.startswith(f"{path}: row group 1, column 'id': ")
    assert "CRC" in message
    assert found["prompt"].to_pylist() == table["prompt"].to_pylist()
    assert found["nested"].to_pylist() == table["nested"].to_pylist()
    expected = table["id"].to_pylist()
    assert found["id"].to_pylist() == [*expected[:1512], *[None] * 488, *expected[2000:]]
    for start in (1000, 1600, 1999):
        assert sorted(read(source, ["id"], start)[1]) == [row for row in sorted(errors) if row >= start]
    assert not read(source, ["prompt"])[1]
    assert not read(source, ["id"], 2000)[1]


def test_several_columns_can_be_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    damage(tmp_path / "a.parquet", b"id 723")
    damage(tmp_path / "a.parquet", b"prompt 1001")
    found, errors = read(open_input(str(tmp_path), "auto", {}), ["prompt", "id"])
    assert sorted(errors) == [*range(512, 1000), *range(1000, 2000)]
    assert "'id'" in errors[512].message
    assert "'prompt'" in errors[1000].message
    assert found["prompt"].null_count == 1000


def test_compressed_pages_without_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = write(path, compression="zstd", write_page_checksum=False)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found, errors = read(open_input(str(path), "auto", {}), ["prompt", "id"])
    assert sorted(errors) == list(range(1000, 2000))
    assert found["id"].to_pylist() == table["id"].to_pylist()


class Kms(pe.KmsClient):
    """Keys that are no secrets."""

    def __init__(self, _: Any) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
        return base64.b64decode(wrapped)


def write_encrypted(path: Path, plaintext_footer: bool) -> None:
    configuration = pe.EncryptionConfiguration(
        footer_key="key", column_keys={"key": ["secret"]}, plaintext_footer=plaintext_footer
    )
    properties = pe.CryptoFactory(Kms).file_encryption_properties(pe.KmsConnectionConfig(), configuration)
    table = pa.table({"prompt": ["a", "b"], "secret": ["c", "d"]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def test_an_encrypted_column_spoils_its_own_file(job: Job) -> None:
    (job.folder / "in").mkdir()
    write_encrypted(job.folder / "in" / "a.parquet", plaintext_footer=True)
    pq.write_table(pa.table({"prompt": ["e"], "secret": ["f"]}), job.folder / "in" / "b.parquet")
    source = open_input(str(job.folder / "in"), "auto", {})
    found, errors = read(source, ["prompt", "secret"])
    assert found["secret"].to_pylist() == [None, None, "f"]
    assert "a.parquet: row group 0, column 'secret'" in errors[1].message
    job.set(input__path=str(job.folder / "in"), output__input_columns=["prompt"])
    assert job.run() == 0
    assert [row["prompt"] for row in job.rows()] == ["a", "b", "e"]


def test_an_encrypted_footer_is_refused(tmp_path: Path) -> None:
    write_encrypted(tmp_path / "a.parquet", plaintext_footer=False)
    with pytest.raises(ConfigurationError, match=r"a\.parquet: not readable as parquet: .*encrypted"):
        open_input(str(tmp_path), "auto", {})


@pytest.mark.parametrize("column", ["prompt", "id"])
def test_a_job_serves_all_rows_that_can_be_read(job: Job, column: str) -> None:
    path = job.folder / "prompts.parquet"
    write(path)
    damage(path, f"{column} 1723".encode())
    job.set(input__path=str(path), output__rows_per_part=700)
    assert job.run() == 3
    errors = {row["prompt"] if column == "id" else row["id"] for row in job.rows() if row["status"] == "error"}
    other = {"id": "prompt", "prompt": "id"}[column]
    assert errors == {f"{other} {row}" for row in range(1512, 2000)}
    assert {row["error_code"] for row in job.rows()} == {None, "read_error"}
    loaded = fake_llm.LLM.loaded
    assert job.run() == 3  # complete: nothing is served again
    assert fake_llm.LLM.loaded == loaded


def test_an_array_that_is_not_valid_spoils_its_own_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow reads a DuckDB ARRAY with a null."""
    write(tmp_path / "a.parquet")
    original = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *arguments: Any, **named: Any) -> Any:
        for batch in original(self, *arguments, **named):
            offsets = np.zeros(batch.num_rows + 1, np.int32)
            lists = pa.Array.from_buffers(
                pa.list_(pa.int8()), batch.num_rows, [None, pa.py_buffer(offsets)], children=[pa.array([1], pa.int8())]
            )
            columns = {name: lists if name == "id" else batch.column(name) for name in batch.schema.names}
            changed = pa.record_batch(columns)
            offsets[-1] = 9  # of which the array knows nothing
            yield changed

    source = open_input(str(tmp_path), "auto", {})
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    found, errors = read(source, ["prompt", "id"])
    assert (found["prompt"].null_count, found["id"].null_count, len(errors)) == (0, ROWS, ROWS)
    assert "column 'id': " in errors[0].message


class FailingFile:
    """A file whose reads fail from a place on."""

    closed = False

    def __init__(self, path: str, limit: int) -> None:
        self._stream = io.BytesIO(Path(path).read_bytes())
        self._limit = limit

    def read(self, size: int) -> bytes:
        if self._stream.tell() < self._limit < self._stream.tell() + size:
            raise OSError(5, "Input/output error")
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_disk_that_fails_makes_no_error_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    source = open_input(str(path), "auto", {})
    place = path.read_bytes().index(b"id 23")
    monkeypatch.setattr(InputFile, "open", lambda file: pa.PythonFile(FailingFile(file.path, place), mode="r"))
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 1 << 12)
    with pytest.raises(OSError, match=r"Input/output error.*a\.parquet"):
        read(source, ["prompt", "id"])


NAMES = ["", " ", "a", "a.b", ".", "a.", "two\nlines", "ünï", "__read_error__", "row", "__index_level_0__"]


def table_of(job: Job, columns: Mapping[str, Any]) -> Job:
    pq.write_table(pa.table(columns), job.folder / "prompts.parquet")
    return job.set(input__path=str(job.folder / "prompts.parquet"))


def test_any_name_is_a_column(job: Job) -> None:
    columns = {name: [f"{name}{row}" for row in range(3)] for name in NAMES if name != "a"}
    table_of(job, {"prompt": ["p", "q", "r"], "a": [{"b": "inner"}] * 3, **columns})
    assert job.run() == 0
    table = job.table()
    assert all(table[name].to_pylist() == values for name, values in columns.items())
    assert table["a"].to_pylist() == [{"b": "inner"}] * 3


def test_a_column_of_any_name_is_the_prompt(job: Job) -> None:
    for name in NAMES:
        table_of(job, {"x": ["bad_json: x"], name: ["hello"]}).set(input__columns={"prompt": name})
        job.set(output__path=f"{job.folder}/out-{NAMES.index(name)}", output__input_columns=["x"])
        assert job.run() == 0
        assert [row["prompt_tokens"] for row in job.rows()] == [5]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["p"], "plain_name": [1]}), tmp_path / "a.parquet", store_schema=False)
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes().replace(b"plain_name", b"plain_\xff\xfe\xfd\xfc"))
    with pytest.raises(ConfigurationError, match=r"a\.parquet: not readable as parquet"):
        open_input(str(path), "auto", {})


def repeated(name: str) -> pa.Table:
    return pa.Table.from_arrays([pa.array([value]) for value in "pxy"], names=["prompt", name, name])


def test_a_repeated_name_is_refused_where_the_column_is_used(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(repeated("x"), job.folder / "prompts.parquet")
    job.set(input__path=str(job.folder / "prompts.parquet"))
    assert job.run() == 2
    assert "prompts.parquet: has two columns named 'x', expected one" in capsys.readouterr().err
    assert job.set(output__input_columns=["prompt"]).run() == 0


@pytest.fixture
def count_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """Returns the names of the columns that were decoded."""
    names: set[str] = set()
    original = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, *arguments: Any, **named: Any) -> Any:
        names.update(named.get("columns", ()))
        return original(self, *arguments, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    return lambda: names


def test_columns_that_the_job_does_not_use_are_not_decoded(job: Job, count_decoded: Callable[[], set[str]]) -> None:
    table_of(job, {f"c{i}": ["x"] for i in range(3000)})
    job.set(input__template="{{ c7 }} {{ row['c9'] }}", output__input_columns=["c8"])
    assert job.run() == 0
    assert {name for name in count_decoded() if name[1:].isdigit()} == {"c7", "c8", "c9"}


@pytest.mark.parametrize("options", [{}, {"use_dictionary": True}], ids=["plain", "dictionary"])
def test_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """A value that a dictionary stores once is as large in each row."""
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    path = tmp_path / "large.parquet"
    pq.write_table(
        pa.table({"x": ["a" * 10_000] * 600, "y": ["b"] * 600}), path, **{"use_dictionary": False, **options}
    )
    source = open_input(str(path), "auto", {})
    for columns, most in ((["x"], 10), (["x", "y"], 10), (["y"], 512)):
        counts = [rows.batch.num_rows for rows in source.read(0, 600, columns)]
        assert sum(counts) == 600
        assert most // 2 < max(counts) <= most


def test_memory_that_is_short_makes_no_error_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet")

    def fail(*_: Any, **__: Any) -> None:
        raise pa.ArrowMemoryError("malloc of size 512016384 failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(MemoryError):
        list(open_input(str(tmp_path / "a.parquet"), "auto", {}).read(0, 10, ["prompt"]))
