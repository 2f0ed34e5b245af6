"""CSV and TSV files as tables: one pass finds the columns' types, later passes read ranges of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import csv

from ...errors import RowError
from .compression import compression_of, head_of, open_stream
from .continued import Continued
from .csv_kinds import STRING, TextKind, kinds_for
from .files import InputFile
from .json_kinds import Expected
from .table import BATCH_ROWS, Rows, Table, batch_of

BLOCK_BYTES = 16 << 20
"""A row is at most this long."""

FIRST_ROW = 2
"""The number that pyarrow gives to the row after the header."""


class CsvTable(Table):
    """A CSV file in UTF-8, whose first line names the columns.

    An empty field without quotes is null. A column is typed where each of its texts is an integer, or a number, or true
    or false. A row with another number of fields than the first line is a bad row.
    """

    extensions: ClassVar[tuple[str, ...]] = (".csv",)
    delimiter: ClassVar[str] = ","

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        self._compression = compression_of(file)
        self._names: list[str] = []
        self.num_rows = 0
        try:
            self._scan(expected)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            raise pa.ArrowInvalid(f"a row is longer than {BLOCK_BYTES >> 20} MiB; write JSON Lines instead") from error
        self._continued = Continued(self._pieces, self.num_rows)
        self.schema = pa.schema([(name, self._kinds[name][0].arrow) for name in self._names])

    @staticmethod
    def recognizes(head: bytes) -> bool:
        """Never: without its name, a file of this format is text like any other."""
        return False

    @classmethod
    def settle(cls, tables: Sequence[Table]) -> Sequence[Table]:
        ours = [table for table in tables if isinstance(table, cls)]
        for name in dict.fromkeys(name for table in ours for name in table._kinds):
            having = [table for table in ours if name in table._kinds]
            kinds = having[0]._kinds[name]
            common = [kind for kind in kinds if all(kind in table._kinds[name] for table in having)]
            is_empty = all(name in table._empty for table in having)
            for table in having:
                table._settle(name, kinds[-1] if is_empty else common[0])
        return ours

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        known = [name for name in columns if name in self._kinds]
        if start >= stop:
            return
        for piece in self._continued.read(start, stop, known):
            for first in range(0, len(piece), BATCH_ROWS):
                yield self._rows(piece[first : first + BATCH_ROWS], known)

    def _scan(self, expected: Mapping[str, Expected]) -> None:
        """Finds names, kinds and the number of rows."""
        head = head_of(self._file, 1 << 20).strip(b"\r\n")
        self._has_rows = b"\n" in head or b"\r" in head
        if head:
            self._names = self._reader(pa.BufferReader(head + b"\n"), (), lambda _: "skip").schema.names
        self._kinds = {name: [*kinds_for(expected.get(name))] for name in self._names}
        self._empty = {*self._names}
        for piece in self._pieces(()):
            self._learn(piece)
            self.num_rows += len(piece)

    def _learn(self, piece: pa.RecordBatch) -> None:
        """Drops the kinds that some of these texts do not have. The last one of a column always stays."""
        for name, texts in zip(self._names, piece.columns[1:], strict=True):
            *others, last = self._kinds[name]
            self._kinds[name] = [*(kind for kind in others if kind.has(texts)), last]
            if texts.null_count < len(texts):
                self._empty.discard(name)

    def _settle(self, name: str, kind: TextKind) -> None:
        self._kinds[name] = [kind]
        for index in self.schema.get_all_field_indices(name):
            self.schema = self.schema.set(index, pa.field(name, kind.arrow))

    def _rows(self, piece: pa.RecordBatch, columns: Sequence[str]) -> Rows:
        reasons = enumerate(piece.column(0).to_pylist())
        errors = {row: RowError("bad_type", reason) for row, reason in reasons if reason is not None}
        arrays = {}
        for name, texts in zip(columns, piece.columns[1:], strict=False):
            arrays[name], misfits = _converted(name, texts, self._kinds[name][0])
            errors = {**misfits, **errors}
        return Rows(batch_of(arrays, len(piece)), errors)

    def _pieces(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows in pieces: why a row is bad, or null; then the texts of some columns, of all if none is named.

        A text is bytes here, so that one that is not UTF-8 spoils no other row.
        """
        bad: dict[int, str] = {}

        def note(row: Any) -> str:
            fields = f"{row.actual_columns} fields, expected {row.expected_columns} as in the first line"
            bad[row.number - FIRST_ROW] = f"the row has {fields}"
            return "skip"

        if not self._has_rows:
            return
        row = 0
        with open_stream(self._file, self._compression) as stream:
            reader = self._reader(stream, columns, note)
            for batch in reader:
                piece = _with_bad_rows(batch, row, bad)
                row += len(piece)
                yield piece
            if bad:  # rows after the last good one
                yield _with_bad_rows(pa.RecordBatch.from_pylist([], reader.schema), row, bad)

    def _reader(self, stream: Any, columns: Sequence[str], note: Callable[[Any], str]) -> csv.CSVStreamingReader:
        """Reads batches of some columns' texts as bytes, of all columns if none is named.

        Args:
            note: is called with each row that has a wrong number of fields, and returns "skip".
        """
        return csv.open_csv(
            stream,
            csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=note),
            csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(self._names, pa.binary()),
                include_columns=[*columns],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )


class TsvTable(CsvTable):
    """A file of values divided by tabs, else like a CSV file."""

    extensions = (".tsv", ".tab")
    delimiter = "\t"


def _with_bad_rows(batch: pa.RecordBatch, first: int, bad: dict[int, str]) -> pa.RecordBatch:
    """Puts rows of nulls where bad rows were left out; the first column of the result says why they are bad.

    Args:
        first: number of the first row.
        bad: number of a row that was left out → why. Loses those that are in the result.
    """
    num_rows = batch.num_rows
    for row in sorted(bad):
        num_rows += row < first + num_rows or batch.num_rows == 0
    reasons = [bad.pop(row, None) for row in range(first, first + num_rows)]
    is_bad = np.array([reason is not None for reason in reasons], bool)
    indices = pa.array(np.cumsum(~is_bad) - 1, pa.int64(), mask=is_bad)
    columns = [column.take(indices) for column in batch.columns]
    return pa.RecordBatch.from_arrays([pa.array(reasons, pa.string()), *columns], ["", *batch.schema.names])


def _converted(name: str, texts: pa.Array, kind: TextKind) -> tuple[pa.Array, dict[int, RowError]]:
    """Returns the values of a column's texts; null where a text is of another kind, with the reason by its row."""
    try:
        return kind.convert(texts), {}
    except pa.ArrowInvalid:
        cells, errors = [], {}
        for row in range(len(texts)):
            cell = texts.slice(row, 1)
            if not kind.has(cell):
                code = "invalid_text" if kind is STRING else "bad_type"
                errors[row] = RowError(code, f"the column {name!r}: expected {kind.words}")
                cell = pa.nulls(1, texts.type)
            cells.append(kind.convert(cell))
        return pa.concat_arrays(cells), errors
