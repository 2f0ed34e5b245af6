"""The output folder of a job, read by the programs that people read Parquet with."""

from __future__ import annotations

import datetime
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Job

Rows = list[dict[str, Any]]

IDS = [f"row-{i}" for i in range(7)]
INPUT: dict[str, list[Any]] = {
    "id": IDS,
    "prompt": ["one", None, "three", "", "naïve ✿", "six", "seven"],
    "number": [1, None, 3, 4, 5, 6, 2**53],
    "share": [0.5, None, 0.1, 1e-300, -0.25, 0.75, 3.5],
    "is_hard": [True, False, None, True, False, True, False],
    "day": [datetime.date(2024, 2, 29), None, *[datetime.date(1969, 12, 31)] * 5],
    "tags": [["a", "b"], [], None, ["c", None], ["ü"], ["a"], ["d"]],
    "source": [{"name": "x", "line": i} if i % 3 else None for i in range(7)],
    "nested": [[{"k": [1, 2]}, {"k": []}], None, [], *[[{"k": [i]}] for i in range(4)]],
}


@pytest.fixture
def output(job: Job) -> Path:
    """Three parts of seven rows with two samples each; a row is an error."""
    pq.write_table(pa.table(INPUT), job.folder / "prompts.parquet")
    job.set(input__path=str(job.folder / "prompts.parquet"), output__rows_per_part=3, sampling__n=2)
    assert job.set(output__token_ids=True, output__logprobs=True).run() == 3
    return job.output


def pyarrow(folder: Path) -> Rows:
    import pyarrow.dataset as ds

    return ds.dataset(folder).to_table().to_pylist()


def pandas(folder: Path) -> Rows:
    import pandas

    return pandas.read_parquet(folder).to_dict("records")


def polars(folder: Path) -> Rows:
    import polars

    return polars.read_parquet(folder).to_dicts()


def duckdb(folder: Path) -> Rows:
    import duckdb

    with duckdb.connect() as database:
        found = database.sql(f"SELECT * FROM '{folder}/*.parquet'")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def datasets(folder: Path) -> Rows:
    import datasets

    files = {"train": f"{folder}/*.parquet"}
    return list(datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder.parent / "cache"))["train"])


def pyspark(folder: Path) -> Rows:
    builder = (
        importlib.import_module("pyspark.sql")
        .SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
    )
    spark = builder.config("spark.sql.warehouse.dir", str(folder.parent / "warehouse")).getOrCreate()
    try:
        return [row.asDict(recursive=True) for row in spark.read.parquet(str(folder)).collect()]
    finally:
        spark.stop()


def plain(value: Any) -> Any:
    """The value in Python's own types; a missing one is None."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def in_order(rows: Rows) -> Rows:
    return sorted((plain(row) for row in rows), key=lambda row: (row["id"], row["sample_index"] or 0))


@pytest.mark.parametrize("reader", [pyarrow, pandas, polars, duckdb, datasets, pyspark], ids=lambda read: read.__name__)
def test_a_reader_finds_every_row_with_its_values(output: Path, reader: Any) -> None:
    pytest.importorskip(reader.__name__, reason=f"{reader.__name__} is not installed")
    parts = [pq.ParquetFile(path).read() for path in sorted(output.iterdir())]
    expected = in_order([row for part in parts for row in part.to_pylist()])
    found = in_order(reader(output))
    assert len(parts) == 3 and len(found) == 13
    assert found[0].keys() == expected[0].keys()
    for one, other in zip(found, expected, strict=True):
        assert one == other
        position = IDS.index(one["id"])
        assert {name: one[name] for name in INPUT} == {name: column[position] for name, column in INPUT.items()}
    assert [row["id"] for row in found if row["status"] == "error"] == ["row-1"]
