"""A job's input as one long table: rows are numbered over all files, and any range of them can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ConfigurationError
from .files import EXTENSIONS, InputFile, find_files
from .jsonl import JsonlTable, Kind
from .openai_batch import OpenAIBatchTable
from .table import BATCH_ROWS, READ_ERROR, Table


@dataclass(frozen=True)
class Input:
    """All input files of a job.

    Args:
        files: sorted by name; row numbers run through them in this order.
        tables: the same files, opened.
        schema: of all of them together; a column that one file lacks is null there.
    """

    files: tuple[InputFile, ...]
    tables: tuple[Table, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        return sum(table.num_rows for table in self.tables)

    def manifest(self) -> list[dict[str, Any]]:
        """What identifies the input: per file its name, rows, size in bytes, and the version of its content."""
        return [
            {"file": file.name, "rows": table.num_rows, "bytes": file.size, "version": file.version()}
            for file, table in zip(self.files, self.tables, strict=True)
        ]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows from `start` to before `stop`, in order, as batches with exactly `columns` (and perhaps READ_ERROR)."""
        ends = list(accumulate(table.num_rows for table in self.tables))
        for table, end in zip(self.tables, ends, strict=True):
            first = end - table.num_rows
            if first < stop and start < end:
                for batch in table.read(max(start - first, 0), min(stop, end) - first, columns):
                    yield self._aligned(batch, columns)

    def _aligned(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        names = [*columns, READ_ERROR] if READ_ERROR in batch.schema.names else list(columns)
        arrays = []
        for name in columns:
            kind = self.schema.field(name).type
            present = name in batch.schema.names
            array = batch.column(name) if present else pa.nulls(batch.num_rows, kind)
            arrays.append(array if array.type == kind else array.cast(kind))
        if len(names) > len(columns):
            arrays.append(batch.column(READ_ERROR))
        return pa.RecordBatch.from_arrays(arrays, names=names)


def open_input(paths: str | Sequence[str], file_format: str, expected: Mapping[str, Kind]) -> Input:
    """Find and open the input.

    Args:
        paths: files, folders, globs or URLs.
        file_format: auto, parquet, jsonl or openai-batch.
        expected: for JSON Lines, kinds of columns in which a value of another kind spoils its row only.

    Raises:
        ConfigurationError: nothing is there, a file cannot be read, or files or lines contradict each other.
    """
    files = find_files(paths)
    kinds = {file_format} if file_format != "auto" else {_sniff(file) for file in files}
    if len(kinds) > 1:
        raise ConfigurationError(f"input.path: found {' and '.join(sorted(kinds))} files together, expected one format")
    kind = kinds.pop()
    tables = tuple(_open_table(file, kind, expected) for file in files)
    return Input(tuple(files), tables, _merged_schema(files, tables))


def _open_table(file: InputFile, kind: str, expected: Mapping[str, Kind]) -> Table:
    try:
        if kind == "parquet":
            return ParquetTable(file)
        return JsonlTable(file, expected) if kind == "jsonl" else OpenAIBatchTable(file)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"input.path: {file.name}: not readable as {kind}: {error}") from error


def _merged_schema(files: Sequence[InputFile], tables: Sequence[Table]) -> pa.Schema:
    schema = pa.schema([])
    for file, table in zip(files, tables, strict=True):
        names = table.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigurationError(f"input.path: {file.name}: has two columns named {twice[0]!r}, expected one")
        try:
            schema = pa.unify_schemas([schema, table.schema.remove_metadata()])
        except pa.ArrowException as error:
            raise ConfigurationError(
                f"input.path: {file.name}: its columns differ from the other files': {error}"
            ) from error
    return schema


def _sniff(file: InputFile) -> str:
    """The format of a file, from its name, else from how it begins."""
    kind = EXTENSIONS.get(file.extension)
    if kind == "parquet":
        return kind
    with file.open() as stream:
        head = stream.read(1 << 20)
    if kind is None and head[:4] == b"PAR1":
        return "parquet"
    if kind is None and not head.lstrip().startswith(b"{"):
        raise ConfigurationError(
            f"input.path: {file.name}: unknown format, expected Parquet or JSON Lines (set input.format)"
        )
    return "openai-batch" if _is_openai_batch(head) else "jsonl"


def _is_openai_batch(head: bytes) -> bool:
    try:
        first = json.loads(head.lstrip().partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and "custom_id" in first and isinstance(first.get("body"), dict)


class ParquetTable:
    """A Parquet file: schema and row counts from its footer, rows streamed page by page."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        with file.open() as stream:
            parquet = pq.ParquetFile(stream)
            self.schema = parquet.schema_arrow
            metadata = parquet.metadata
            self._group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self.num_rows = sum(self._group_rows)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        ends = list(accumulate(self._group_rows))
        groups = [i for i, end in enumerate(ends) if start < end and end - self._group_rows[i] < stop]
        present = [name for name in columns if name in self.schema.names]
        row = ends[groups[0]] - self._group_rows[groups[0]] if groups else stop
        with self._file.open() as stream:
            # Buffered pages instead of whole column chunks: a file of one huge row group takes no more memory.
            parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=present):
                first, last = max(start - row, 0), min(stop - row, batch.num_rows)
                if first < last:
                    yield batch.slice(first, last - first)
                row += batch.num_rows
                if row >= stop:
                    return
