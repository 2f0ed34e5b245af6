"""Hive partitions: what folder names mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.input.hive import partition_of, partition_types
from rwkv_batch.job.input.reader import Input, open_input

from ..conftest import Job


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("lang=en", {"lang": "en"}),
        ("lang=__HIVE_DEFAULT_PARTITION__", {"lang": None}),
        ("city=S%C3%A3o%20Paulo", {"city": "São Paulo"}),
        ("q%3D=a%2Fb=c", {"q=": "a/b=c"}),
        ("broken=%FF%", {"broken": "%FF%"}),
        ("empty=", {"empty": ""}),
        ("=x", {}),
        ("plain", {}),
    ],
)
def test_a_folder(folder: str, expected: Any) -> None:
    assert partition_of(["a", folder, "b"]) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "02", "-3"], pa.int64()),
        (["1", None], pa.int64()),
        (["1", "x"], pa.string()),
        (["99999999999999999999"], pa.string()),
        (["2024-01-31", "2024-02-01"], pa.date32()),
        (["2024-01-31", "2024-02-31"], pa.string()),
        (["0.5"], pa.string()),
        ([None], pa.string()),
    ],
)
def test_the_type_of_a_column_follows_from_all_its_values(values: list[str | None], expected: pa.DataType) -> None:
    assert partition_types([{"x": value} for value in values]) == {"x": expected}


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def column(source: Input, name: str) -> list[Any]:
    return [value for rows in source.read(0, source.num_rows, [name]) for value in rows.batch[name].to_pylist()]


def test_the_columns_of_a_written_data_set_come_back(tmp_path: Path) -> None:
    table = pa.table({"prompt": list("abcd"), "lang": ["en", "de/at", None, "en"], "year": [2024, 2024, 2025, 2025]})
    ds.write_dataset(
        table,
        tmp_path / "set",
        format="parquet",
        partitioning=ds.partitioning(table.select(["lang", "year"]).schema, flavor="hive"),
    )
    source = open_input(str(tmp_path / "set"), "auto", {})
    assert source.schema == pa.schema([("prompt", pa.string()), ("lang", pa.string()), ("year", pa.int64())])
    found = zip(*(column(source, name) for name in ("prompt", "lang", "year")), strict=True)
    assert sorted(found) == [("a", "en", 2024), ("b", "de/at", 2024), ("c", None, 2025), ("d", "en", 2025)]


@pytest.mark.parametrize("pattern", ["", "/lang=en", "/lang=en/*.parquet", "/*/*.parquet", "/lang=en/a.parquet"])
def test_every_path_into_a_data_set_gives_the_columns(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "lang=en" / "a.parquet", prompt=["p", "q"])
    assert column(open_input(f"{tmp_path}{pattern}", "auto", {}), "lang") == ["en", "en"]


def test_a_folder_that_is_no_partition_ends_the_partitions_above(tmp_path: Path) -> None:
    write(tmp_path / "run=5" / "set" / "lang=en" / "a.parquet", prompt=["p"])
    assert open_input(str(tmp_path / "run=5" / "set" / "lang=en"), "auto", {}).schema.names == ["prompt", "lang"]


def test_the_folder_counts_where_the_file_has_the_column_too(tmp_path: Path) -> None:
    write(tmp_path / "n=1" / "a.parquet", prompt=["p"], n=["other"])
    write(tmp_path / "b.parquet", prompt=["q"], n=pa.array([7], pa.int8()))
    write(tmp_path / "c.parquet", prompt=["r"])
    source = open_input(str(tmp_path), "auto", {})
    assert source.schema.field("n").type == pa.int64()
    assert dict(zip(column(source, "prompt"), column(source, "n"), strict=True)) == {"p": 1, "q": 7, "r": None}


def test_a_job_sees_partition_columns_as_columns(job: Job) -> None:
    for lang in ("de", "__HIVE_DEFAULT_PARTITION__", "en"):
        write(job.folder / "set" / f"lang={lang}" / "a.parquet", question=["x"])
    job.set(input__path=str(job.folder / "set"), input__template="{{ lang or 'any' }}: {{ question }}")
    assert job.run() == 0
    rows = {row["lang"]: row["prompt_tokens"] for row in job.rows()}
    assert rows == {None: len("any: x"), "de": len("de: x"), "en": len("en: x")}


def test_lines_of_json_have_partition_columns(tmp_path: Path) -> None:
    (tmp_path / "n=3").mkdir()
    (tmp_path / "n=3" / "a.jsonl").write_text('{"prompt": "p"}\n')
    assert column(open_input(str(tmp_path), "auto", {}), "n") == [3]
