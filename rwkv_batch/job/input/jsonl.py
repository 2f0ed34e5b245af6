"""JSON Lines as a table: one pass finds the columns and their types, later passes read ranges of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa

from ...errors import ConfigurationError, RowError
from .compression import compression_of
from .continued import Continued
from .files import InputFile
from .json_kinds import INTEGER, JSON_TEXT, NULL, Expected, JsonKind, OpenMessages, Struct, join, settled, widen
from .lines import UTF8_MARK, read_lines
from .table import BATCH_BYTES, BATCH_ROWS, Rows, Table, batch_of

BOOKMARK_ROWS = 4096
"""The offset of every row with this number, or a multiple of it, is kept, so that a range of rows is found fast."""
MAX_DEPTH = 100
"""Lists and objects inside each other in a line."""


class Line(NamedTuple):
    """What a line holds: values by column name, and why the row is bad, if it is."""

    record: dict[str, Any]
    error: RowError | None = None


class JsonlTable(Table):
    """One file of JSON objects, one per line, in UTF-8.

    Blank lines do not count. A line that is not an object is a bad row. A column that is not in `expected` holds JSON
    text where its values have no common type.
    """

    extensions = (".jsonl", ".ndjson", ".json")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        self._compression = compression_of(file)
        self._expected = dict(expected)
        self._kinds: dict[str, JsonKind] = {}
        self._bookmarks = [0]
        self.num_rows = 0
        first = last = b""
        for offset, line in read_lines(file, self._compression):
            if self.num_rows and self.num_rows % BOOKMARK_ROWS == 0:
                self._bookmarks.append(offset)
            first, last = first or line, line
            self._learn(self.parse(line).record)
            self.num_rows += 1
        _check_is_lines(file, first, last if self.num_rows > 1 else b"")
        self._continued = Continued(self._lines, self.num_rows)
        self._settle(self._kinds)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.removeprefix(UTF8_MARK).lstrip().startswith((b"{", b"["))

    @classmethod
    def settle(cls, tables: Sequence[Table]) -> Sequence[Table]:
        ours = [table for table in tables if isinstance(table, cls)]
        kinds: dict[str, JsonKind] = {}
        for table in ours:
            for name, kind in table._kinds.items():
                if table._is_open(name):
                    joined = join(kinds.get(name, NULL), kind)
                    kinds[name] = INTEGER if joined is JSON_TEXT and table._expected.get(name) is INTEGER else joined
        for table in ours:
            table._settle(kinds)
        return ours

    def parse(self, line: bytes) -> Line:
        """What one line holds."""
        try:
            text = line.decode()
            record = json.loads(text)
            if "\\ud" in text or "\\uD" in text:  # a surrogate, which may be half of a pair
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            return Line({}, RowError("invalid_text", f"the line is not UTF-8: {error.reason} at byte {error.start}"))
        except UnicodeEncodeError:
            return Line({}, RowError("invalid_text", "the line has half of a surrogate pair, expected text"))
        except RecursionError:
            return Line({}, _too_deep())
        except json.JSONDecodeError as error:
            return Line({}, RowError("bad_json", f"the line is not valid JSON: {error.msg} at character {error.pos}"))
        except ValueError as error:  # an integer of thousands of digits
            return Line({}, RowError("bad_json", f"the line is not valid JSON: {error}"))
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(record, MAX_DEPTH):
            return Line({}, _too_deep())
        if record is not None and not isinstance(record, dict):
            return Line({}, RowError("bad_json", "the line is valid JSON, expected an object"))
        return Line(record or {})

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        if start >= stop:
            return
        known = [name for name in columns if name in self._kinds]
        for lines in self._batches_of_lines(start, stop, known):
            yield self._rows([self.parse(line) for line in lines], known)

    def _batches_of_lines(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[list[bytes]]:
        """Yields the lines of some rows in batches. The line that makes one longer than `BATCH_BYTES` ends it."""
        batch: list[bytes] = []
        num_bytes = 0
        for (line,) in self._lines_of(start, stop, columns):
            batch.append(line)
            num_bytes += len(line)
            if len(batch) == BATCH_ROWS or num_bytes > BATCH_BYTES:
                yield batch
                batch, num_bytes = [], 0
        if batch:
            yield batch

    def _lines_of(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Sequence[bytes]]:
        if self._compression is not None:
            return self._continued.read(start, stop, columns)
        bookmark = start // BOOKMARK_ROWS
        skipped = start - bookmark * BOOKMARK_ROWS
        lines = read_lines(self._file, None, self._bookmarks[bookmark])
        return ((line,) for _, line in islice(lines, skipped, skipped + stop - start))

    def _lines(self, columns: Sequence[str]) -> Iterator[Sequence[bytes]]:
        """All lines, each as a piece of one row."""
        return ((line,) for _, line in read_lines(self._file, self._compression))

    def _learn(self, record: dict[str, Any]) -> None:
        """Widens the columns' kinds by one row."""
        for name, value in record.items():
            self._kinds[name] = widen(self._kinds.get(name, NULL), value, self._wanted(name, value))

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

    def _is_open(self, name: str) -> bool:
        """Whether the values of a column decide on its kind, at least in a part."""
        wanted = self._expected.get(name)
        return wanted is None or wanted is INTEGER or isinstance(wanted, Struct | OpenMessages)

    def _settle(self, kinds: Mapping[str, JsonKind]) -> None:
        """Gives the columns of this file kinds that have all their values, and that a Parquet file can hold.

        Args:
            kinds: wider kinds of some columns.
        """
        for name, own in self._kinds.items():
            kind, wanted = kinds.get(name, own), self._expected.get(name)
            if isinstance(wanted, Struct) and isinstance(kind, Struct) and not kind.fields:
                kind = wanted
            self._kinds[name] = settled(kind)
        self.json_text = {name for name, kind in self._kinds.items() if kind is JSON_TEXT}
        self.schema = pa.schema([(name, kind.arrow) for name, kind in self._kinds.items()])

    def _rows(self, lines: list[Line], columns: Sequence[str]) -> Rows:
        errors = {row: line.error for row, line in enumerate(lines) if line.error is not None}
        values: dict[str, list[Any]] = {name: [] for name in columns}
        for row, (record, _) in enumerate(lines):
            for name in columns:
                kind, value = self._kinds[name], record.get(name)
                if not kind.fits(value):
                    errors.setdefault(row, self._required(name).fault(name, value))
                    value = None
                values[name].append(kind.for_arrow(value))
        arrays = {name: pa.array(values[name], self._kinds[name].arrow) for name in columns}
        return Rows(batch_of(arrays, len(lines)), errors)

    def _required(self, name: str) -> JsonKind:
        """The kind of a column. Where the file has no value of the right kind, the kind that was expected."""
        expected = self._expected.get(name)
        return expected if self._kinds[name] is NULL and isinstance(expected, JsonKind) else self._kinds[name]


def _check_is_lines(file: InputFile, first: bytes, last: bytes) -> None:
    """Refuses a file that is JSON, but not one object per line.

    Args:
        first: its first line.
        last: its last line, empty if that is the first one.
    """
    if last:
        is_array = first.startswith(b"[") and last.endswith(b"]")
        is_document = first.startswith(b"{") and last.endswith(b"}") and not _is_json(last)
        if (is_array or is_document) and first.endswith((b"[", b"{", b",")):
            raise _not_lines(file, is_array)
    elif first.startswith(b"[") and _is_json(first):
        raise _not_lines(file, is_array=True)


def _not_lines(file: InputFile, is_array: bool) -> ConfigurationError:
    what, command = ("one JSON array", "jq -c '.[]'") if is_array else ("JSON with line breaks inside", "jq -c .")
    return ConfigurationError(
        f"input.path: {file.name}: is {what}, expected JSON Lines, one object per line; convert it with: "
        f"{command} FILE > FILE.jsonl"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether a value has more than `depth` lists and objects inside each other, it itself being the first one."""
    level = [value]
    for _ in range(depth):
        inside = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> RowError:
    return RowError("bad_json", f"the line has more than {MAX_DEPTH} lists and objects inside each other")
