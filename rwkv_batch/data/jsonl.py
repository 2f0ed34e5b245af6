"""JSON Lines as a table: one pass finds the columns and their types, later ones read ranges of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..errors import ConfigurationError, RowError
from .files import InputFile

BATCH_ROWS = 512
BOOKMARK_ROWS = 4096

Kind = Any
"""What JSON values of a column have been: None (only nulls), "bool", "int", "float", "string", [Kind] or {name: Kind}."""

_SCALARS = {bool: "bool", int: "int", float: "float", str: "string"}
_ARROW = {None: pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


class ContradictionError(ValueError):
    """Two values of one column have no type in common."""


class JsonlTable:
    """One file of JSON objects, a line each; blank lines don't count, and a line that is no object is a bad row.

    Args:
        file: UTF-8, not compressed.
        expected: types of columns in which a value of another type spoils its row only.

    Raises:
        ConfigurationError: a column not in `expected` has values of types that contradict each other.
    """

    def __init__(self, file: InputFile, expected: Mapping[str, pa.DataType]) -> None:
        self._file = file
        self._bookmarks = [0]
        self.num_rows = 0
        kinds: dict[str, Kind] = {}
        usable: set[str] = set()
        for offset, line in self._lines(0):
            if self.num_rows % BOOKMARK_ROWS == 0:
                self._bookmarks[self.num_rows // BOOKMARK_ROWS :] = [offset]
            self.num_rows += 1
            try:
                record = self.parse(line)
            except RowError:
                continue
            for name, value in record.items():
                if name in expected:
                    kinds.setdefault(name, None)
                    if value is not None and conforms(value, expected[name]):
                        usable.add(name)
                        continue
                    if name in usable:
                        continue
                try:
                    kinds[name] = widen(kinds.get(name), value)
                except ContradictionError as error:
                    if name in expected:
                        continue
                    raise ConfigurationError(f"input.path: {file.name}: row {self.num_rows - 1}: {name}: {error}") from error
        self._checked = {name: expected[name] for name in usable}
        self.schema = pa.schema([(name, self._checked.get(name) or to_arrow(kind)) for name, kind in kinds.items()])

    def parse(self, line: bytes) -> dict[str, Any]:
        """One line's object, empty objects inside it as None. Raises RowError."""
        try:
            record = json.loads(line, object_hook=lambda item: item or None)
            if b"\\ud" in line.lower():
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise RowError("bad_json", f"the line is not valid JSON: {error}") from error
        if record is not None and not isinstance(record, dict):
            raise RowError("bad_json", f"the line holds {json_type(record)}, expected an object")
        return record or {}

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        bookmark = start // BOOKMARK_ROWS
        if start >= stop:
            return
        rows: list[dict[str, Any]] = []
        errors: list[str | None] = []
        for row, (_, line) in enumerate(self._lines(self._bookmarks[bookmark]), bookmark * BOOKMARK_ROWS):
            if row < start:
                continue
            record, error = self._checked_record(line)
            rows.append(record)
            errors.append(error)
            if len(rows) == BATCH_ROWS or row + 1 == stop:
                yield self._batch(rows, errors, columns)
                rows, errors = [], []
            if row + 1 == stop:
                return
