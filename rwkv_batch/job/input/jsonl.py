"""JSON Lines as a table: one pass finds the columns and their types, later passes read ranges of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from ...errors import ConfigurationError, RowError
from .files import InputFile
from .json_kinds import NULL, Expected, JsonKind, widen
from .table import BATCH_ROWS, Rows, Table, batch_of

BOOKMARK_ROWS = 4096
"""The offset of every row with this number, or a multiple of it, is kept, so that a range of rows is found fast."""


class Line(NamedTuple):
    """What a line holds: values by column name, and why the row is bad, if it is."""

    record: dict[str, Any]
    error: RowError | None = None


class JsonlTable(Table):
    """One file of JSON objects, one per line, in UTF-8 and not compressed.

    Blank lines do not count. A line that is not an object is a bad row. A column that is not in `expected` must have
    values of one kind.
    """

    extensions = (".jsonl", ".ndjson")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        self._expected = dict(expected)
        self._kinds: dict[str, JsonKind] = {}
        self._bookmarks = [0]
        self.num_rows = 0
        for offset, line in self._lines(0):
            if self.num_rows and self.num_rows % BOOKMARK_ROWS == 0:
                self._bookmarks.append(offset)
            self._learn(self.parse(line).record)
            self.num_rows += 1
        self.schema = pa.schema([(name, kind.arrow) for name, kind in self._kinds.items()])

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.lstrip().startswith(b"{")

    def parse(self, line: bytes) -> Line:
        """The object of one line. Empty objects inside it become None."""
        try:
            record = json.loads(line, object_hook=lambda item: item or None)
            if b"\\u" in line or b"\xed" in line:  # an escape, or the first byte of a surrogate that is encoded itself
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Line({}, RowError("invalid_text", "the line has half of a surrogate pair, expected text"))
        except (ValueError, RecursionError) as error:
            return Line({}, RowError("bad_json", f"the line is not valid JSON: {error}"))
        if record is not None and not isinstance(record, dict):
            return Line({}, RowError("bad_json", "the line is valid JSON, expected an object"))
        return Line(record or {})

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        if start >= stop:
            return
        bookmark = start // BOOKMARK_ROWS
        skipped = start - bookmark * BOOKMARK_ROWS
        lines = islice(self._lines(self._bookmarks[bookmark]), skipped, skipped + stop - start)
        while parsed := [self.parse(line) for _, line in islice(lines, BATCH_ROWS)]:
            yield self._rows(parsed, [name for name in columns if name in self._kinds])

    def _lines(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """Lines that are not blank, each with its offset in bytes."""
        with self._file.open() as stream:
            stream.seek(offset)
            rest = b""
            while block := stream.read(1 << 20):
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield offset, line
                    offset += len(line) + 1
            if rest.strip():
                yield offset, rest

    def _learn(self, record: dict[str, Any]) -> None:
        """Widens the columns' kinds by one row."""
        for name, value in record.items():
            try:
                self._kinds[name] = widen(self._kinds.get(name, NULL), value, self._wanted(name, value))
            except TypeError as error:
                where = f"{self._file.name}: row {self.num_rows}"
                raise ConfigurationError(f"input.path: {where}: column {name!r}: {error}") from error

    def _wanted(self, name: str, value: Any) -> JsonKind | None:
        """The kind that a column must have. The first value that is not empty decides between alternatives."""
        wanted = self._expected.get(name)
        if not isinstance(wanted, tuple):
            return wanted
        for kind in wanted:
            if value and kind.fits(value):
                self._expected[name] = kind
                return kind
        return wanted[0]

    def _rows(self, lines: list[Line], columns: Sequence[str]) -> Rows:
        errors = {row: line.error for row, line in enumerate(lines) if line.error is not None}
        for row, (record, _) in enumerate(lines):
            for name in columns:
                kind, value = self._kinds[name], record.get(name)
                if not kind.fits(value):
                    where, expected = self._required(name).misfit(name, value)
                    errors.setdefault(row, RowError("bad_type", f"{where}: expected {expected.words}"))
                    value = None
                record[name] = kind.for_arrow(value)
        arrays = {name: pa.array([record[name] for record, _ in lines], self._kinds[name].arrow) for name in columns}
        return Rows(batch_of(arrays, len(lines)), errors)

    def _required(self, name: str) -> JsonKind:
        """The kind of a column. Where the file has no value of the right kind, the kind that was expected."""
        expected = self._expected.get(name)
        return expected if self._kinds[name] is NULL and isinstance(expected, JsonKind) else self._kinds[name]
