"""JSON Lines as a table: one pass finds the columns and their types, later ones read ranges of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from ..errors import ConfigurationError
from .files import InputFile
from .table import BATCH_ROWS, READ_ERROR

BOOKMARK_ROWS = 4096

Kind = Any
"""The type of a column's values: None (only nulls so far), "bool", "int", "float", "string", [Kind] or {name: Kind}."""

_SCALARS = {bool: "bool", int: "int", float: "float", str: "string"}
_ARROW = {None: pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}


class JsonlTable:
    """One file of JSON objects, one a line. Blank lines don't count; a line that is no object is a bad row.

    Args:
        file: UTF-8, not compressed.
        expected: kinds of columns in which a value of another kind spoils its row only.

    Raises:
        ConfigurationError: a column that is not in `expected` has values of kinds that contradict each other.
    """

    def __init__(self, file: InputFile, expected: Mapping[str, Kind]) -> None:
        self._file = file
        self._expected = expected
        self._kinds: dict[str, Kind] = {}
        self._bookmarks = [0]
        self.num_rows = 0
        for offset, line in self._lines(0):
            if self.num_rows and self.num_rows % BOOKMARK_ROWS == 0:
                self._bookmarks.append(offset)
            self._learn(self.parse(line))
            self.num_rows += 1
        self.schema = pa.schema([(name, to_arrow(kind)) for name, kind in self._kinds.items()])

    def parse(self, line: bytes) -> dict[str, Any]:
        """One line's object, with a reason under READ_ERROR where it has none. Empty objects inside it become None."""
        try:
            record = json.loads(line, object_hook=lambda item: item or None)
            if b"\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            return {READ_ERROR: f"bad_json: the line is not valid JSON: {error}"}
        if record is not None and not isinstance(record, dict):
            return {READ_ERROR: "bad_json: the line is valid JSON, expected an object"}
        return record or {}

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if start >= stop:
            return
        bookmark = start // BOOKMARK_ROWS
        skipped = start - bookmark * BOOKMARK_ROWS
        lines = islice(self._lines(self._bookmarks[bookmark]), skipped, skipped + stop - start)
        while records := [self.parse(line) for _, line in islice(lines, BATCH_ROWS)]:
            yield self._batch(records, [name for name in columns if name in self._kinds])

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
        """Widen the columns' kinds by one row."""
        for name, value in record.items():
            known, wanted = self._kinds.get(name), self._expected.get(name)
            if name == READ_ERROR or (wanted is not None and known is wanted):
                continue
            if wanted is not None and value is not None and fits(value, wanted):
                self._kinds[name] = wanted
                continue
            try:
                self._kinds[name] = widen(known, value)
            except TypeError as error:
                if wanted is None:
                    where = f"{self._file.name}: row {self.num_rows}"
                    raise ConfigurationError(f"input.path: {where}: column {name!r}: {error}") from error

    def _batch(self, records: list[dict[str, Any]], columns: Sequence[str]) -> pa.RecordBatch:
        for record in records:
            for name in columns:
                if not fits(record.get(name), self._kinds[name]):
                    record.setdefault(READ_ERROR, f"bad_type: {name}: expected {describe(self._kinds[name])}")
                    record[name] = None
        arrays = [pa.array([record.get(name) for record in records], to_arrow(self._kinds[name])) for name in columns]
        errors = pa.array([record.get(READ_ERROR) for record in records], pa.string())
        return pa.RecordBatch.from_arrays([*arrays, errors], names=[*columns, READ_ERROR])


def fits(value: Any, kind: Kind) -> bool:
    """Whether a column of this kind can hold the value without changing it."""
    if value is None:
        return True
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(fits(value.get(name), item) for name, item in kind.items())
    if kind == "float" and type(value) is int:
        return abs(value) <= 2**53
    return _SCALARS.get(type(value)) == kind and (kind != "int" or -(2**63) <= value < 2**63)


def widen(kind: Kind, value: Any) -> Kind:
    """The narrowest kind that holds the values of `kind` and `value`. Raises TypeError where there is none."""
    if value is None:
        return kind
    if isinstance(value, dict) and isinstance(kind, dict | None):
        known = kind or {}
        return {**known, **{name: widen(known.get(name), item) for name, item in value.items()}}
    if isinstance(value, list) and isinstance(kind, list | None):
        item_kind = kind[0] if kind else None
        for item in value:
            item_kind = widen(item_kind, item)
        return [item_kind]
    found = _SCALARS.get(type(value))
    if found == "int" and not fits(value, "int"):
        raise TypeError("got an integer beyond 64 bits; write it as a string")
    if kind in (None, found) and found is not None:
        return found
    if kind in ("int", "float") and found in ("int", "float"):
        return "float"
    raise TypeError(f"got {describe(widen(None, value))} here and {describe(kind)} above, expected one type")


def to_arrow(kind: Kind) -> pa.DataType:
    if isinstance(kind, list):
        return pa.list_(to_arrow(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, to_arrow(item)) for name, item in kind.items()])
    return _ARROW[kind]


def describe(kind: Kind) -> str:
    if isinstance(kind, list):
        return f"a list of {describe(kind[0])}"
    if isinstance(kind, dict):
        return "an object"
    return {None: "null", "bool": "true or false", "int": "an integer", "float": "a number", "string": "a string"}[kind]
