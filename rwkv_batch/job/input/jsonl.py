"""JSON Lines as a table: one pass finds the columns and their types, later ones read ranges of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from ...errors import ConfigurationError
from .files import InputFile
from .table import BATCH_ROWS, READ_ERROR

BOOKMARK_ROWS = 4096

Kind = Any
"""The type of a column's values: None (only nulls so far), "bool", "int", "float", "string", [Kind] or {name: Kind};
where it is expected also "strings" (a string or a list of them) or "biases" (numbers by token id)."""

_SCALARS = {bool: "bool", int: "int", float: "float", str: "string"}
_ARROW = {None: pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string()}
_ARROW |= {"strings": pa.list_(pa.string()), "biases": pa.map_(pa.string(), pa.float64())}
_NAMES = {
    None: "null",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "string": "a string",
    "strings": "a string or a list of strings",
    "biases": "an object of numbers",
}


class JsonlTable:
    """One file of JSON objects, one a line. Blank lines don't count; a line that is no object is a bad row.

    Args:
        file: UTF-8, not compressed.
        expected: kinds of columns in which a value of another kind spoils its row only. A tuple holds alternatives: the
            first value that is of one of them decides.

    Raises:
        ConfigurationError: a column that is not in `expected` has values of kinds that contradict each other.
    """

    def __init__(self, file: InputFile, expected: Mapping[str, Kind]) -> None:
        self._file = file
        self._expected = dict(expected)
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
                json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return {READ_ERROR: "invalid_text: the line has half of a surrogate pair, expected text"}
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
            if name == READ_ERROR:
                continue
            try:
                self._kinds[name] = widen(self._kinds.get(name), value, self._wanted(name, value))
            except TypeError as error:
                where = f"{self._file.name}: row {self.num_rows}"
                raise ConfigurationError(f"input.path: {where}: column {name!r}: {error}") from error

    def _wanted(self, name: str, value: Any) -> Kind:
        """The kind that is expected of a column. Alternatives stay open until a value that isn't empty has come."""
        wanted = self._expected.get(name)
        if not isinstance(wanted, tuple):
            return wanted
        for kind in wanted:
            if value and fits(value, kind):
                self._expected[name] = kind
                return kind
        return wanted[0]

    def _batch(self, records: list[dict[str, Any]], columns: Sequence[str]) -> pa.RecordBatch:
        for record in records:
            for name in columns:
                kind = self._kinds[name]
                if not fits(record.get(name), kind):
                    where, expected = misfit(name, record[name], kind or self._expected.get(name))
                    record.setdefault(READ_ERROR, f"bad_type: {where}: expected {describe(expected)}")
                    record[name] = None
                record[name] = held(record.get(name), kind)
        arrays = [pa.array([record[name] for record in records], to_arrow(self._kinds[name])) for name in columns]
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
    if kind == "strings":
        return isinstance(value, str) or fits(value, ["string"])
    if kind == "biases":
        return isinstance(value, dict) and all(fits(item, "float") for item in value.values())
    if kind == "float" and type(value) is int:
        return abs(value) <= 2**53
    return _SCALARS.get(type(value)) == kind and (kind != "int" or -(2**63) <= value < 2**63)


def misfit(where: str, value: Any, kind: Kind) -> tuple[str, Kind]:
    """Where in a value that doesn't fit the fault is, and which kind was expected there."""
    if isinstance(value, dict) and isinstance(kind, dict):
        name = next(name for name, item in kind.items() if not fits(value.get(name), item))
        return misfit(f"{where}.{name}", value[name], kind[name])
    return where, kind


def held(value: Any, kind: Kind) -> Any:
    """A value that fits, as Arrow takes it."""
    if kind == "strings" and isinstance(value, str):
        return [value]
    if kind == "biases" and value is not None:
        return list(value.items())
    if isinstance(kind, dict) and value is not None:
        return {name: held(value.get(name), item) for name, item in kind.items()}
    return value


def widen(kind: Kind, value: Any, wanted: Kind = None) -> Kind:
    """The narrowest kind that holds the values of `kind` and `value`. Raises TypeError where there is none.

    Args:
        wanted: this kind whatever the value is; of an object's names only those that have come.
    """
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return kind
        known = kind or {}
        return {**known, **{name: widen(known.get(name), item, wanted.get(name)) for name, item in value.items()}}
    if wanted is not None:
        return wanted
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
    return _NAMES[kind]
