"""Several files as one input: one type for each column, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.input.reader import open_input

from ..conftest import Job


def write(folder: Path, *tables: pa.Table) -> str:
    """Writes a.parquet, b.parquet …"""
    folder.mkdir(exist_ok=True)
    for name, table in zip("abcdef", tables, strict=False):
        pq.write_table(table, folder / f"{name}.parquet")
    return str(folder / "*.parquet")


def run(job: Job, *tables: pa.Table) -> int:
    return job.set(input__path=write(job.folder / "in", *tables)).run()


def test_files_of_one_data_set_that_differ(job: Job) -> None:
    first = pa.table(
        {
            "prompt": ["one", "two"],
            "kind": pa.array(["x", None]).dictionary_encode(),
            "score": [1, 2],
            "when": pa.array([0, 1], pa.timestamp("us")),
            "meta": [{"a": 1}, None],
            "id": [b"i", b"j"],
        },
        schema=pa.schema(
            [
                pa.field("prompt", pa.string(), nullable=False),
                ("kind", pa.dictionary(pa.int8(), pa.string())),
                ("score", pa.int32()),
                ("when", pa.timestamp("us")),
                ("meta", pa.struct([pa.field("a", pa.int8(), nullable=False)])),
                pa.field("id", pa.binary(1), nullable=False),
            ]
        ),
    )
    second = pa.table(
        {
            "score": pa.array([0.5], pa.float32()),
            "prompt": pa.array(["three"], pa.large_string()),
            "kind": pa.array(["y"], pa.string_view()),
            "when": pa.array([2000], pa.timestamp("ns")),
            "meta": [{"b": ["x"]}],
        }
    )
    job.set(sampling__n=2)
    assert run(job, first, second, pa.table({"prompt": ["four"], "kind": pa.nulls(1)})) == 0
    table = job.table()
    rows = table.filter(pa.compute.equal(table["sample_index"], 0)).to_pylist()
    assert [row["prompt"] for row in rows] == ["one", "two", "three", "four"]
    assert [row["kind"] for row in rows] == ["x", None, "y", None]
    assert [row["score"] for row in rows] == [1.0, 2.0, 0.5, None]
    assert [row["meta"] for row in rows] == [{"a": 1, "b": None}, None, {"a": None, "b": ["x"]}, None]
    assert [row["id"] for row in rows] == [b"i", b"j", None, None]
    assert table["when"].cast(pa.int64()).to_pylist()[::2] == [0, 1000, 2000, None]


def test_types_that_do_not_go_together(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = pa.table({"prompt": ["p"], "x": [1]}), pa.table({"prompt": ["q"], "x": ["text"]})
    assert run(job, first, second) == 2
    error = capsys.readouterr().err
    assert f"column 'x' is int64 in {job.folder}/in/a.parquet and string in {job.folder}/in/b.parquet" in error
    assert job.set(output__input_columns=["prompt"]).run() == 0
    job.set(input__columns={"prompt": "x"})
    assert job.run() == 2
    error = capsys.readouterr().err
    assert "column 'x' is int64 in" in error
    assert "expected string" not in error


def test_the_two_types_of_three_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    tables = (pa.table({"x": values}) for values in (pa.nulls(1), [1], [2.5], [True]))
    found = open_input(write(tmp_path, *tables), "auto", {}).contradictions["x"]
    assert "is int64 in" in found
    assert "b.parquet and bool in" in found


@pytest.mark.parametrize(("kind", "value", "other"), [("int64", 2**60 + 1, 0.5), ("uint64", 2**63, -1)])
def test_a_value_that_the_common_type_lacks_is_an_error_row(job: Job, kind: str, value: int, other: Any) -> None:
    first = pa.table({"prompt": ["p", "q"], "x": pa.array([value, 5], kind)})
    assert run(job, first, pa.table({"prompt": ["r"], "x": [other]})) == 3
    assert [(row["x"], row["error_code"]) for row in job.rows()] == [(None, "bad_type"), (5, None), (other, None)]
    assert f"Integer value {value} not in range" in job.rows()[0]["error"]


def test_a_column_named_as_the_programs_words(job: Job) -> None:
    name = "__read_error__"
    assert run(job, pa.table({"prompt": ["p", "q"], name: ["bad_json: injected", None]})) == 0
    assert [row[name] for row in job.rows()] == ["bad_json: injected", None]
