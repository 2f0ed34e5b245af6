"""The making of parts: a unit's results, beside the input columns that parts repeat, become a Parquet file in memory.

The same code makes a test part before the model is loaded, so that what cannot be written is refused in time. What
cannot be read or written later, such as a damaged page in the middle of a file, costs the rows of one file their cells
of one column: these cells are null, and the rows become error rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import RowError, RwkvBatchError
from ..input.reader import Span
from ..input.table import Rows, batch_of, no_columns
from ..plan import Unit
from .codec import DEFAULT, Codec

logger = logging.getLogger(__name__)

ROW_GROUP_ROWS = 4096
"""The most records of a row group, where the job does not say."""
ROW_GROUP_BYTES = 64 << 20
SLICE_BYTES = 16 << 20
"""Size of the slices in which input columns are repeated for the samples of their rows. One record may be larger."""

Lost: TypeAlias = Mapping[tuple[str, str], str]
"""File and column → why the column's cells in the file cannot be passed on."""


@dataclass(frozen=True)
class OutputFormat:
    """The schema and the footer of parts and segments.

    Args:
        results: columns that the job adds.
        passed: columns of the input that parts repeat, before the results, and those of output.extra.
        footer: key-values of every file; "fingerprint" distinguishes this job's files from another job's.
        names: column in `results` → its name in parts, where that is another one.
        codec: the compression of parts.
        row_group_rows: the most records of a row group of a part.
    """

    results: pa.Schema
    passed: pa.Schema
    footer: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    codec: Codec = DEFAULT
    row_group_rows: int = ROW_GROUP_ROWS

    def schema(self, unit: Unit, passed: pa.Schema | None = None, extra: Mapping[str, int] | None = None) -> pa.Schema:
        """Returns the schema of a unit's part, with its footer as metadata.

        Args:
            passed: replaces the format's own.
            extra: more key-values of the footer.
        """
        values = {**self.footer, "unit": unit.index, **(extra or {})}
        metadata = {f"rwkv_batch.{key}": str(value) for key, value in values.items()}
        return pa.schema([*(self.passed if passed is None else passed), *self.named_results()], metadata=metadata)

    def named_results(self) -> pa.Schema:
        """Returns the columns that the job adds, with their names in parts."""
        return pa.schema([field.with_name(self.names.get(field.name, field.name)) for field in self.results])


class RowSource(Protocol):
    """The input. `rwkv_batch.job.input.reader.Input` is one."""

    def spans(self, start: int, stop: int) -> Iterable[Span]: ...

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]: ...


class MadePart(NamedTuple):
    """A part's bytes, the number of its records, and how many of its input rows are errors."""

    data: pa.Buffer
    records: int
    errors: int


class PartMaker:
    """Makes parts.

    Args:
        form: schema and footer of parts.
        source: the input, whose columns parts repeat.
    """

    def __init__(self, form: OutputFormat, source: RowSource) -> None:
        self._form = form
        self._source = source

    def make(self, unit: Unit, results: pa.Table) -> MadePart:
        """Makes the part of a unit, which can be read back.

        Args:
            results: of all of the unit's rows, after a column "row", in the order of rows and samples.

        Raises:
            RuntimeError: the input has fewer rows than when the job started. Or the part cannot be written, and no
                input column is the reason.
        """
        spans = list(self._source.spans(unit.start, unit.stop))
        passed = self._form.passed
        lost: Lost = {}
        try:
            made = self._write(unit, results, spans, passed, lost)
        except Exception as error:  # what the readers and writers of all types raise is not known
            if is_no_damage(error):
                raise
            made, lost = self._without_lost(unit, results, spans)
        if made.records != results.num_rows:
            raise RuntimeError(f"unit {unit.index}: the input has lost rows since the job started")
        if made.errors != _count_errors(results):  # of rows that could not be read; the footer has their number
            made = self._write(unit, results, spans, passed, lost, made.errors)
        return made

    def problem(self, unit: Unit, results: pa.Table, spans: Sequence[Span], passed: pa.Schema) -> str | None:
        """Returns what goes wrong while a part with these input columns is written; None where nothing does."""
        try:
            self._write(unit, results, spans, passed, {})
        except Exception as error:  # see `make`
            if is_no_damage(error):
                raise
            return f"{type(error).__name__}: {error}"
        return None

    def _without_lost(self, unit: Unit, results: pa.Table, spans: Sequence[Span]) -> tuple[MadePart, Lost]:
        """Makes the part of a unit without the cells that cannot be passed on. Returns these too."""
        fault = self.problem(unit, results, spans, pa.schema([]))
        if fault is None:
            lost = self._lost(unit, results, spans)
            try:
                return self._write(unit, results, spans, self._form.passed, lost), lost
            except Exception as error:  # see `make`
                if is_no_damage(error):
                    raise
                fault = str(error)
        raise RuntimeError(f"unit {unit.index} ({', '.join(span.file.name for span in spans)}) has no part: {fault}")

    def _lost(self, unit: Unit, results: pa.Table, spans: Sequence[Span]) -> Lost:
        """Finds the columns that cannot be passed on, each in each file alone."""
        found: dict[tuple[str, str], str] = {}
        for span in spans:
            for column in self._form.passed:
                passed = pa.schema([column])
                if self.problem(unit, results, [span], passed) is None:
                    continue
                _read_bytes(span)  # where the disk or the network is the reason, this raises
                if reason := self.problem(unit, results, [span], passed):
                    found[span.file.name, column.name] = reason
                    where = f"unit {unit.index}: {span.file.name}: column {column.name!r}"
                    logger.warning("%s cannot be passed on: its rows are errors, with null there (%s)", where, reason)
        return found

    def _write(
        self,
        unit: Unit,
        results: pa.Table,
        spans: Sequence[Span],
        passed: pa.Schema,
        lost: Lost,
        errors: int | None = None,
    ) -> MadePart:
        """Writes a part, and reads it back. `errors` is the footer's number of error rows, by default the results'."""
        number = _count_errors(results) if errors is None else errors
        schema = self._form.schema(unit, passed, {"rows": unit.num_rows, "errors": number})
        sink = pa.BufferOutputStream()
        records = found = 0
        joined = self._joined(results, spans, passed, lost)
        status = len(passed) + self._form.results.get_field_index("status")
        codec = self._form.codec
        with pq.ParquetWriter(sink, schema, compression=codec.name, compression_level=codec.level) as writer:
            for group in _row_groups(joined, self._form.row_group_rows):
                records += group.num_rows
                last = group.num_columns - 1
                found += _sum_of(pc.and_(group.column(last), pc.equal(group.column(status), "error")))
                group = group.remove_column(last).rename_columns(schema.names)
                writer.write_table(group.cast(schema), row_group_size=group.num_rows)
        data = sink.getvalue()
        _read_back(data, schema, records)
        return MadePart(data, records, found)

    def _joined(self, results: pa.Table, spans: Sequence[Span], passed: pa.Schema, lost: Lost) -> Iterator[pa.Table]:
        """Yields the results after their rows' input columns. The last column: whether a result is its row's first."""
        rows = np.asarray(results["row"])
        results = results.drop_columns("row").append_column("is_first", _is_first(results))
        for span in spans:
            start = span.start
            for batch, unreadable in self._read(span, passed, lost):
                count = batch.num_rows
                low, high = np.searchsorted(rows, [start, start + count])
                at = rows[low:high] - start
                start += count
                for first, last in _slices(batch, at):
                    result = _with_errors(results.slice(low + first, last - first), unreadable, at[first:last])
                    columns = [*_taken(batch, at[first:last]), *result.columns]
                    yield pa.table(columns, names=[*passed.names, *result.column_names])

    def _read(self, span: Span, passed: pa.Schema, lost: Lost) -> Iterator[Rows]:
        """Yields the input columns of a file's rows, with nulls and errors where a column is lost."""
        gone = {name: reason for (file, name), reason in lost.items() if file == span.file.name}
        names = [name for name in passed.names if name not in gone]
        sentences = "; ".join(f"{span.file.name}: column {name!r}: {reason}" for name, reason in gone.items())
        found = self._source.read(span.start, span.stop, names) if names else no_columns(span.start, span.stop)
        for batch, unreadable in found:
            count = batch.num_rows
            columns = {
                field.name: pa.nulls(count, field.type) if field.name in gone else batch.column(field.name)
                for field in passed
            }
            lost_rows = dict.fromkeys(range(count if gone else 0), RowError("read_error", sentences))
            yield Rows(batch_of(columns, count), {**lost_rows, **unreadable})


def footer(parquet: pq.ParquetFile) -> dict[str, str]:
    """Returns this project's key-values in a Parquet file's footer, without their prefix."""
    metadata = parquet.metadata.metadata or {}
    pairs = ((key.decode(), value.decode()) for key, value in metadata.items())
    return {key.removeprefix("rwkv_batch."): value for key, value in pairs if key.startswith("rwkv_batch.")}


def is_no_damage(error: Exception) -> bool:
    """Whether an exception says nothing about the data: memory is short, or this package has refused something."""
    return isinstance(error, MemoryError | RwkvBatchError)


def _is_first(results: pa.Table) -> pa.Array:
    """Whether each result is the first one of its row."""
    return pa.array(np.diff(np.asarray(results["row"]), prepend=-1) != 0)


def _count_errors(results: pa.Table) -> int:
    """Returns the number of rows that are errors."""
    return _sum_of(pc.and_(_is_first(results), pc.equal(results["status"], "error")))


def _sum_of(flags: Any) -> int:
    return pc.sum(flags).as_py() or 0


def _read_bytes(span: Span) -> None:
    """Reads a file of the input to its end, without decoding it. Raises OSError where it cannot be read."""
    with span.file.open() as file:
        while file.read(1 << 20):
            pass


def _read_back(data: pa.Buffer, schema: pa.Schema, records: int) -> None:
    """Reads a part as a reader will. Raises ValueError or an exception of pyarrow where that fails."""
    parquet = pq.ParquetFile(pa.BufferReader(data))
    found = sum(parquet.read_row_group(index).num_rows for index in range(parquet.num_row_groups))
    if parquet.schema_arrow.names != schema.names or found != records:
        raise ValueError(f"read back {found} records of {parquet.schema_arrow.names}, expected {records}")


def _slices(batch: pa.RecordBatch, at: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cuts the records of a batch into stretches whose input columns have at most SLICE_BYTES, or one record.

    Args:
        at: the row in the batch of each record.
    """
    pending = [(0, len(at))] if len(at) else []
    while pending:
        low, high = pending.pop()
        first = at[low]
        most = int(np.bincount(at[low:high] - first).max())
        size = sum(map(_num_bytes, batch.slice(first, at[high - 1] + 1 - first).columns))
        if high - low == 1 or size * most <= SLICE_BYTES:
            yield low, high
        else:
            middle = (low + high) // 2
            pending += [(middle, high), (low, middle)]


def _taken(batch: pa.RecordBatch, at: np.ndarray) -> list[pa.Array]:
    """Returns the input columns of records, given the row in the batch of each."""
    if at[-1] - at[0] + 1 == len(at):  # one record a row
        return list(batch.slice(at[0], len(at)).columns)
    return list(batch.take(pa.array(at)).columns)


def _with_errors(results: pa.Table, unreadable: Mapping[int, RowError], at: np.ndarray) -> pa.Table:
    """Returns results in which the rows that could not be read are errors.

    Args:
        unreadable: row of a batch → why it could not be read.
        at: the row in the batch of each result.
    """
    found = [unreadable.get(row) for row in at.tolist()] if unreadable else []
    if not any(found):
        return results
    is_new = pc.and_(pa.array([error is not None for error in found]), pc.equal(results["status"], "ok"))
    texts = {
        "status": ["error"] * len(found),
        "error_code": [error and error.code for error in found],
        "error": [error and error.message for error in found],
    }
    for name, values in texts.items():
        column = pc.if_else(is_new, pa.array(values, results[name].type), results[name])
        results = results.set_column(results.column_names.index(name), name, column)
    return results


def _row_groups(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """Joins small tables and cuts large ones, so that each makes a row group of at most `most` rows.

    A row group ends earlier where it has ROW_GROUP_BYTES.
    """
    pending: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            pending.append(table.slice(start, most - rows))
            start += len(pending[-1])
            rows += len(pending[-1])
            size += sum(map(_num_bytes, pending[-1].columns))
            if rows >= most or size >= ROW_GROUP_BYTES:
                yield pa.concat_tables(pending)
                pending, rows, size = [], 0, 0
    if pending:
        yield pa.concat_tables(pending)


def _num_bytes(column: pa.Array | pa.ChunkedArray) -> int:
    """Returns the bytes of a column's rows. A dictionary, which all slices of a column share, does not count."""
    if pa.types.is_dictionary(column.type):
        return len(column) * int(column.type.index_type.bit_width) // 8
    return int(column.nbytes)
