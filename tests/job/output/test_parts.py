"""The making of parts: slices bounded by bytes, columns that cannot be passed on, and errors that are no damage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.errors import ResumeError, RowError
from rwkv_batch.job.input.reader import Span
from rwkv_batch.job.input.table import Rows
from rwkv_batch.job.output import parts
from rwkv_batch.job.output.parts import MadePart, OutputFormat, PartMaker, footer
from rwkv_batch.job.plan import Unit

RESULTS = pa.schema([("completion", pa.string()), ("status", pa.string()), ("error_code", pa.string())])
RESULTS = RESULTS.append(pa.field("error", pa.string()))


class File:
    """Stands in for an input file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes_fail = False

    def open(self) -> Any:
        if self.bytes_fail:
            raise OSError("the network is down")
        return open("/dev/null", "rb")


class Source:
    """Stands in for the input: two files of 3 rows. Reading the cell of a column and a row in `failing` raises."""

    def __init__(
        self, failing: dict[str, Exception] | None = None, bad: dict[int, RowError] | None = None, **columns: Any
    ) -> None:
        self.table = pa.table(columns or {"x": range(6), "y": list("abcdef")})
        self.files = [File("one"), File("two")]
        self.failing = failing or {}
        self.bad = bad or {}

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        for file, low, high in zip(self.files, (0, 3), (3, 6), strict=True):
            yield Span(file, max(start, low), min(stop, high))  # type: ignore[arg-type]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        for row in range(start, stop):
            for name in columns:
                if f"{name}{row}" in self.failing:
                    raise self.failing[f"{name}{row}"]
            errors = {0: self.bad[row]} if row in self.bad else {}
            yield Rows(self.table.select(columns).slice(row, 1).to_batches()[0], errors)


def results(samples: int = 1, rows: Sequence[int] = range(6), failed: Sequence[int] = ()) -> pa.Table:
    at = [row for row in rows for _ in range(1 if row in failed else samples)]
    return pa.table(
        {
            "row": at,
            "completion": pa.array([f"done {row}" for row in at], pa.large_string()),
            "status": pa.array(["error" if row in failed else "ok" for row in at], pa.large_string()),
            "error_code": pa.array(["own" if row in failed else None for row in at], pa.large_string()),
            "error": pa.array([None] * len(at), pa.large_string()),
        }
    )


def made(source: Source, table: pa.Table) -> MadePart:
    return PartMaker(OutputFormat(RESULTS, source.table.schema, {"fingerprint": "f"}), source).make(
        Unit(7, 0, 6), table
    )


def read(part: MadePart) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(part.data))


def test_a_part_has_the_input_beside_the_results() -> None:
    part = made(Source(), results(samples=2, failed=[1]))
    rows = read(part).read().to_pylist()
    assert [(row["x"], row["y"], row["completion"]) for row in rows] == [
        (row, "abcdef"[row], f"done {row}") for row in (0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    ]
    assert (part.records, part.errors) == (11, 1)
    own = footer(read(part))
    assert own == {"fingerprint": "f", "unit": "7", "rows": "6", "errors": "1"}


def test_a_column_that_cannot_be_read_is_null_in_its_file(caplog: pytest.LogCaptureFixture) -> None:
    source = Source({"y4": OSError("the page is damaged")})
    part = made(source, results(samples=2, failed=[3]))
    rows = read(part).read().to_pylist()
    assert [row["x"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5]
    assert [row["y"] for row in rows] == ["a", "a", "b", "b", "c", "c", None, None, None, None, None]
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["error"] * 5
    assert [row["error_code"] for row in rows] == [None] * 6 + ["own"] + ["read_error"] * 4
    assert rows[-1]["error"] == "two: column 'y': OSError: the page is damaged"
    assert rows[-1]["completion"] == "done 5"
    assert (part.errors, footer(read(part))["errors"]) == (3, "3")
    assert "unit 7: two: column 'y' cannot be passed on" in caplog.text


def test_all_columns_may_be_lost() -> None:
    source = Source({name + row: ValueError("bad") for name in "xy" for row in "2"})
    rows = read(made(source, results())).read().to_pylist()
    assert [(row["x"], row["y"]) for row in rows] == [(None, None)] * 3 + [(3, "d"), (4, "e"), (5, "f")]
    assert rows[0]["error"] == "one: column 'x': ValueError: bad; one: column 'y': ValueError: bad"


def test_rows_that_the_reader_could_not_read_are_errors() -> None:
    source = Source(bad={1: RowError("invalid_text", "not UTF-8"), 3: RowError("bad_json", "no: object")})
    rows = read(made(source, results(failed=[1]))).read().to_pylist()
    assert [row["error_code"] for row in rows] == [None, "own", None, "bad_json", None, None]
    assert (rows[3]["status"], rows[3]["error"]) == ("error", "no: object")


def test_a_value_that_cannot_be_written_is_lost_too(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = parts._taken
    monkeypatch.setattr(parts, "_taken", lambda *given: [array.cast(pa.int8()) for array in taken(*given)])
    source = Source(x=[1, 2, 3, 4, 500, 6])
    rows = read(made(source, results())).read().to_pylist()
    assert [row["x"] for row in rows] == [1, 2, 3, None, None, None]


@pytest.mark.parametrize("error", [ResumeError("the input changed"), MemoryError("full")])
def test_what_is_no_damage_ends_the_run(error: Exception) -> None:
    with pytest.raises(type(error)):
        made(Source({"y4": error}), results())


def test_a_disk_that_fails_is_no_damage() -> None:
    source = Source({"y4": OSError("the network is down")})
    source.files[1].bytes_fail = True
    with pytest.raises(OSError, match="the network is down"):
        made(source, results())


def test_a_failure_that_passes_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the column fails twice. Then the bytes of its file can be read, and after that the column too."""
    source = Source({"y4": OSError("the network is down")})
    monkeypatch.setattr(parts, "_read_bytes", lambda span: source.failing.clear())
    rows = read(made(source, results())).read().to_pylist()
    assert [(row["y"], row["status"]) for row in rows] == [(letter, "ok") for letter in "abcdef"]


def test_a_part_that_is_not_read_back_as_it_was_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.ParquetWriter.write_table
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda self, table, **more: write(self, table[1:], **more))
    with pytest.raises(RuntimeError, match=r"unit 7 \(one, two\) has no part: .*read back 5 records"):
        made(Source(), results())


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_slices_are_bounded_by_bytes(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SLICE_BYTES", 3000)
    at = np.repeat(np.arange(50), samples)
    texts = ["x" * (10 * row) for row in range(49)] + ["y" * 9000]
    batch = pa.record_batch({"x": texts})
    slices = list(parts._slices(batch, at))
    assert [low for low, _ in slices] == [0, *(high for _, high in slices[:-1])]
    assert slices[-1][1] == len(at)
    sizes = [sum(len(texts[row]) + 4 for row in at[low:high]) for low, high in slices]
    assert all(size <= 3100 or high - low == 1 for size, (low, high) in zip(sizes, slices, strict=True))
    assert len(slices) < 4 * sum(sizes) / 3000 + 4 * samples
    taken = [pa.table(parts._taken(batch, at[low:high]), names=["x"]) for low, high in slices]
    assert pa.concat_tables(taken)["x"].to_pylist() == [texts[row] for row in at]


@pytest.mark.parametrize("most", [1, 4, 5, 18, 100])
def test_row_groups_have_at_most_the_given_number_of_records(most: int) -> None:
    """Batches of the input, here of one row, do not limit them."""
    source = Source()
    form = OutputFormat(RESULTS, source.table.schema, {}, row_group_rows=most)
    found = read(PartMaker(form, source).make(Unit(7, 0, 6), results(samples=3))).metadata
    sizes = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    assert sizes == [min(most, 18 - start) for start in range(0, 18, most)]


def test_a_large_dictionary_makes_no_small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """All slices of a column share its dictionary."""
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 100_000)
    monkeypatch.setattr(parts, "SLICE_BYTES", 100_000)
    words = pa.DictionaryArray.from_arrays(pa.array(range(6), pa.int8()), ["x" * 50_000, *"bcdef"])
    part = made(Source(x=words), results(samples=3))
    assert read(part).metadata.num_row_groups == 1


def test_samples_of_large_cells_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 samples of rows of 8 kB are 64 MB, which are never in memory together: not joined, not written, not read."""
    monkeypatch.setattr(parts, "ROW_GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(parts, "SLICE_BYTES", 1 << 18)
    texts = [f"{row:08d}" * 1000 for row in range(512)]
    source = Source(x=texts)
    source.spans = lambda start, stop: iter([Span(source.files[0], 0, 512)])  # type: ignore[arg-type]
    source.read = lambda *_: iter([Rows(source.table.to_batches()[0], {})])
    table = results(16, range(512))
    peaks: list[int] = []

    def watched(method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            peaks.append(pa.total_allocated_bytes() - before)
            return result

        return call

    monkeypatch.setattr(pq.ParquetWriter, "write_table", watched(pq.ParquetWriter.write_table))
    for name in ("read", "read_row_group", "iter_batches"):
        monkeypatch.setattr(pq.ParquetFile, name, watched(getattr(pq.ParquetFile, name)))
    before = pa.total_allocated_bytes()
    part = PartMaker(OutputFormat(RESULTS, source.table.schema, {}), source).make(Unit(0, 0, 512), table)
    assert part.records == 512 * 16
    assert len(peaks) > 64 and max(peaks) < 12 << 20
