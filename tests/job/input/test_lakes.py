"""Delta, Hudi and Iceberg tables are refused, because their folders hold rows that are no longer theirs."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.files import find_files
from rwkv_batch.job.input.formats import EXTENSIONS

LOGS = {
    "Delta": "_delta_log/00000000000000000000.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Iceberg": "metadata/00000-4a5b.metadata.json",
}


def make(root: Path, log: str) -> None:
    for path in (log, "data/lang=en/a.parquet"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}")


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize(
    "path", ["", "/table", "/table/**/*.parquet", "/table/data", "/table/data/lang=en", "/*/data/*/*.parquet"]
)
def test_a_path_into_a_table(tmp_path: Path, kind: str, path: str) -> None:
    make(tmp_path / "table", LOGS[kind])
    with pytest.raises(ConfigurationError, match=f"^input.path: {tmp_path}/table belongs to an? {kind} table.*export"):
        find_files(f"{tmp_path}{path}", EXTENSIONS)


@pytest.mark.parametrize("kind", LOGS)
def test_files_that_are_named_are_read(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "table", LOGS[kind])
    live = str(tmp_path / "table" / "data" / "lang=en" / "a.parquet")
    assert [file.name for file in find_files([live], EXTENSIONS)] == [live]


@pytest.mark.parametrize("log", [*LOGS.values(), "metadata/info.json", "_delta/log.json", "metadata/x.metadata.json"])
def test_other_files_beside_a_table_are_read(tmp_path: Path, log: str) -> None:
    make(tmp_path / "table", log)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.parquet").write_text("{}")
    assert len(find_files(str(tmp_path / "other"), EXTENSIONS)) == 1
    if log not in LOGS.values():
        assert len(find_files(str(tmp_path / "table"), EXTENSIONS)) == 1


def test_a_table_in_another_file_system() -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/lake/t/part.parquet", "wb") as file:
        pq.write_table(pa.table({"i": [1]}), file)
    memory.pipe("/lake/t/_delta_log/0.json", b"{}")
    for path in ("memory://lake", "memory://lake/t", "memory://lake/*/*.parquet"):
        with pytest.raises(ConfigurationError, match="Delta"):
            find_files(path, EXTENSIONS)


def test_a_folder_beside_the_data_of_an_iceberg_table_is_read(tmp_path: Path) -> None:
    make(tmp_path, LOGS["Iceberg"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.parquet").write_text("{}")
    assert len(find_files(str(tmp_path / "other"), EXTENSIONS)) == 1
