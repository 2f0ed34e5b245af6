"""From columns to Python values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from ...errors import RowError
from .unify import converted, microseconds, nanoseconds_as_text

Record = dict[str, Any]
"""A row's values by column name."""


def records(batch: pa.RecordBatch, ids: frozenset[str]) -> Iterator[Record | RowError]:
    """Yields each row's values, read column by column; where that fails, cell by cell, so that one row is bad.

    Args:
        ids: columns whose lists of integers without nulls become arrays.
    """
    names = batch.schema.names
    try:
        columns = [_values(batch[name], as_arrays=name in ids) for name in names]
    except MemoryError:
        raise
    except Exception:  # of pyarrow, or of a time zone: what a value raises is not known
        yield from (_read_cells(batch, index) for index in range(batch.num_rows))
    else:
        yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _values(column: pa.Array, as_arrays: bool) -> list[Any]:
    """Returns a column's values. With `as_arrays`, lists of integers without nulls become arrays."""
    kind = column.type
    if as_arrays and (pt.is_list(kind) or pt.is_large_list(kind)) and pt.is_integer(kind.value_type):
        offsets = column.offsets.to_pylist()
        values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        if not values.null_count:
            parts = np.split(values.to_numpy(), np.subtract(offsets[1:-1], offsets[0]))
            is_null = column.is_null().to_pylist()
            return [None if null else part for part, null in zip(parts, is_null, strict=True)]
    return list(_without_nanoseconds(column).to_pylist())


def _without_nanoseconds(column: pa.Array) -> pa.Array:
    """Returns the column without values of nanoseconds, which Python lacks and pyarrow leaves to pandas if it is there.

    Raises:
        pa.ArrowException: a value has more digits than microseconds.
    """
    return converted(column, microseconds(column.type))


def _value(cell: pa.Array) -> Any:
    """Returns the value of a column of one cell. A time with more digits than microseconds becomes text."""
    try:
        return _without_nanoseconds(cell)[0].as_py()
    except pa.ArrowInvalid:
        return converted(cell, nanoseconds_as_text(cell.type))[0].as_py()


def _read_cells(batch: pa.RecordBatch, index: int) -> Record | RowError:
    """Returns a row's values, or the error where a cell cannot be read: text that is not UTF-8, a time out of range."""
    found = {}
    for name in batch.schema.names:
        try:
            cell = batch[name].take(pa.array([index]))  # a slice of lists would still hold all items
            found[name] = _value(cell)
        except UnicodeDecodeError as error:
            return RowError("invalid_text", f"the column {name!r}: expected text in UTF-8: {error}")
        except Exception as error:  # see `records`
            reason = f"{type(error).__name__}: {error}"
            return RowError("bad_type", f"the column {name!r} holds a value that cannot be read: {reason}")
    return found
