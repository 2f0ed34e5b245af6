"""The input of a job as one table: rows are numbered over all files, and any range of them can be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from ...errors import ConfigurationError
from .files import InputFile, find_files
from .formats import EXTENSIONS, FORMATS, format_of
from .json_kinds import Expected
from .table import READ_ERROR, Table


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
        """The rows of all files."""
        return sum(table.num_rows for table in self.tables)

    def manifest(self) -> list[dict[str, Any]]:
        """Returns what describes the input: for each file its name, rows, and size in bytes."""
        return [
            {"file": file.name, "rows": table.num_rows, "bytes": file.size}
            for file, table in zip(self.files, self.tables, strict=True)
        ]

    def check_unchanged(self) -> None:
        """Raises ResumeError where a file that the job reads is no longer what it was."""
        for file in self.files:
            if file.version.recorded is not None:
                file.version.check()

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows from `start` to before `stop` in batches with exactly `columns`, and perhaps READ_ERROR."""
        ends = list(accumulate(table.num_rows for table in self.tables))
        for file, table, end in zip(self.files, self.tables, ends, strict=True):
            first = end - table.num_rows
            if first < stop and start < end:
                for batch in file.version.checked(table.read(max(start - first, 0), min(stop, end) - first, columns)):
                    yield self._aligned(batch, columns)

    def _aligned(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """Returns the batch with all `columns`, in the types of the whole input; a column that it lacks is null."""
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


def open_input(paths: str | Sequence[str], file_format: str, expected: Mapping[str, Expected]) -> Input:
    """Finds and opens the input.

    Args:
        paths: files, folders, globs or URLs.
        file_format: "auto", or a name in `FORMATS`.
        expected: for formats whose files have no schema, kinds of columns: a value of another kind makes its row a bad
            row.

    Raises:
        ConfigurationError: nothing is there, a file cannot be read, or files or lines contradict each other.
    """
    files = find_files(paths, EXTENSIONS)
    formats = {file_format} if file_format != "auto" else {format_of(file) for file in files}
    if len(formats) > 1:
        raise ConfigurationError(
            f"input.path: found {' and '.join(sorted(formats))} files together, expected one format"
        )
    name = formats.pop()
    tables = tuple(_open_table(file, name, expected) for file in files)
    return Input(tuple(files), tables, _merged_schema(files, tables))


def _open_table(file: InputFile, name: str, expected: Mapping[str, Expected]) -> Table:
    try:
        return FORMATS[name](file, expected)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"input.path: {file.name}: not readable as {name}: {error}") from error


def _merged_schema(files: Sequence[InputFile], tables: Sequence[Table]) -> pa.Schema:
    """Returns the schema of all files together. Raises ConfigurationError where two files contradict each other."""
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
