"""The input of a job as one table: rows are numbered over all files, and any range of them can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any, NamedTuple

import pyarrow as pa

from ...errors import ConfigurationError, RowError
from .files import InputFile, find_files
from .formats import EXTENSIONS, FORMATS, format_of
from .hive import partition_types
from .json_kinds import Expected
from .table import Rows, Table, batch_of
from .unify import converted, readable, unified


class Span(NamedTuple):
    """The rows of one file: those from `start` to before `stop`, numbered over the whole input."""

    file: InputFile
    start: int
    stop: int


@dataclass(frozen=True)
class Input:
    """All input files of a job.

    Args:
        files: sorted by name; row numbers run through them in this order.
        tables: the same files, opened.
        schema: of all of them together; a column that one file lacks is null there. Hive partitions are columns.
        contradictions: column that has no one type → why. The schema has one of its types.
    """

    files: tuple[InputFile, ...]
    tables: tuple[Table, ...]
    schema: pa.Schema
    contradictions: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """The rows of all files."""
        return sum(table.num_rows for table in self.tables)

    @property
    def has_prompts_of_several_kinds(self) -> bool:
        """Whether each row has its prompt in one of several columns."""
        return any(table.has_prompts_of_several_kinds for table in self.tables)

    @property
    def json_text(self) -> frozenset[str]:
        """The columns that hold JSON text in place of values without a common type."""
        return frozenset().union(*(table.json_text for table in self.tables))

    def manifest(self) -> list[dict[str, Any]]:
        """Returns what describes the input: for each file its name, rows, and size in bytes."""
        return [
            {"file": file.name, "rows": table.num_rows, "bytes": file.size}
            for file, table in zip(self.files, self.tables, strict=True)
        ]

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Yields the files that hold the rows from `start` to before `stop`, each with those of its rows."""
        end = 0
        for file, table in zip(self.files, self.tables, strict=True):
            first, end = end, end + table.num_rows
            if first < stop and start < end:
                yield Span(file, max(start, first), min(stop, end))

    def check_unchanged(self) -> None:
        """Raises ResumeError where a file that the job reads is no longer what it was."""
        for file in self.files:
            if file.version.recorded is not None:
                file.version.check()

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        """Yields the rows from `start` to before `stop`, with exactly `columns`, in the types of the schema."""
        kinds = {name: self.schema.field(name).type for name in columns}
        ends = list(accumulate(table.num_rows for table in self.tables))
        for file, table, end in zip(self.files, self.tables, ends, strict=True):
            first = end - table.num_rows
            if first < stop and start < end:
                constants = {
                    name: pa.scalar(value).cast(kinds[name])
                    for name, value in file.partition.items()
                    if name in kinds and value is not None
                }
                wanted = [name for name in columns if name not in file.partition]
                found = table.read(max(start - first, 0), min(stop, end) - first, wanted)
                for rows in file.version.checked(found):
                    yield _aligned(rows, kinds, constants)


def _aligned(rows: Rows, kinds: Mapping[str, pa.DataType], constants: Mapping[str, pa.Scalar]) -> Rows:
    """Returns the rows with these columns in these types. A column that is not in the batch is constant, or null."""
    batch, errors = rows
    present = dict(zip(batch.schema.names, batch.columns, strict=True))
    arrays = {}
    for name, kind in kinds.items():
        if name in present:
            try:
                arrays[name] = converted(present[name], kind)
            except MemoryError:  # an ArrowException too
                raise
            except pa.ArrowException:
                arrays[name], misfits = _converted_cells(present[name], kind, name)
                errors = {**misfits, **errors}
        elif name in constants:
            arrays[name] = pa.repeat(constants[name], batch.num_rows)
        else:
            arrays[name] = pa.nulls(batch.num_rows, kind)
    return Rows(batch_of(arrays, batch.num_rows), errors)


def _converted_cells(array: pa.Array, kind: pa.DataType, name: str) -> tuple[pa.Array, dict[int, RowError]]:
    """Converts cell by cell. Cells that do not fit are null, and have an error."""
    cells, errors = [], {}
    for index in range(len(array)):
        try:
            cells.append(converted(array.slice(index, 1), kind))
        except pa.ArrowException as error:
            cells.append(pa.nulls(1, kind))
            errors[index] = RowError("bad_type", f"the column {name!r} is {kind} over all files: {error}")
    return pa.concat_arrays(cells), errors


def open_input(paths: str | Sequence[str], file_format: str, expected: Mapping[str, Expected]) -> Input:
    """Finds and opens the input.

    Args:
        paths: files, folders, globs or URLs.
        file_format: "auto", or a name in `FORMATS`.
        expected: for formats whose files have no schema, kinds of columns: a value of another kind makes its row a bad
            row.

    Raises:
        ConfigurationError: nothing is there, a file cannot be read, or lines contradict each other.
    """
    files = find_files(paths, EXTENSIONS)
    formats = {file_format} if file_format != "auto" else {name for file in files if (name := format_of(file))}
    if len(formats) > 1:
        raise ConfigurationError(
            f"input.path: found {' and '.join(sorted(formats))} files together, expected one format"
        )
    name = formats.pop() if formats else "jsonl"
    return _input(files, FORMATS[name].settle([_open_table(file, name, expected) for file in files]))


def _open_table(file: InputFile, name: str, expected: Mapping[str, Expected]) -> Table:
    try:
        return FORMATS[name](file, expected)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ConfigurationError(f"input.path: {file.name}: not readable as {name}: {error}") from error


def _input(files: Sequence[InputFile], tables: Sequence[Table]) -> Input:
    """Returns the files as one input, with one type for each column."""
    fields, contradictions = [], {}
    for name, found in _types(files, tables).items():
        try:
            kind = unified([*found])
        except pa.ArrowException:
            kind = next(iter(found))
            contradictions[name] = _contradiction(name, found)
        fields.append(pa.field(name, kind))
    for file, table in zip(files, tables, strict=True):
        repeated = (name for name, count in Counter(table.schema.names).items() if count > 1)
        contradictions |= {name: f"{file.name}: has two columns named {name!r}, expected one" for name in repeated}
    return Input(tuple(files), tuple(tables), pa.schema(fields), contradictions)


def _types(files: Sequence[InputFile], tables: Sequence[Table]) -> dict[str, dict[pa.DataType, InputFile]]:
    """Returns the types of each column, each with a file that has it."""
    partitions = partition_types([file.partition for file in files])
    types: dict[str, dict[pa.DataType, InputFile]] = {}
    known = None
    for file, table in zip(files, tables, strict=True):
        schema = pa.schema([*table.schema.remove_metadata(), *((name, partitions[name]) for name in file.partition)])
        if known is not None and schema.equals(known):  # as most files of a data set
            continue
        known = schema
        for name, kind in zip(schema.names, schema.types, strict=True):
            types.setdefault(name, {})
            if name not in file.partition:
                types[name].setdefault(readable(kind), file)
        for name in file.partition:
            types[name].setdefault(partitions[name], file)
    return types


def _contradiction(name: str, found: Mapping[pa.DataType, InputFile]) -> str:
    """Names two files whose types of a column cannot be unified."""
    pairs = [*combinations(found, 2)]
    first, second = next((pair for pair in pairs if not _unify(*pair)), pairs[0])
    return (
        f"column {name!r} is {first} in {found[first].name} and {second} in {found[second].name}, "
        "expected types that hold the same kind of value; convert one of the files, or leave the column out of "
        "output.input_columns"
    )


def _unify(first: pa.DataType, second: pa.DataType) -> bool:
    try:
        unified([first, second])
    except pa.ArrowException:
        return False
    return True
