"""Values of Arrow columns as JSON and as CSV."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

_AS_IT_IS = (
    pt.is_null,
    pt.is_boolean,
    pt.is_integer,
    pt.is_floating,
    pt.is_decimal,
    pt.is_date,
    pt.is_time,
    pt.is_timestamp,
    pt.is_string,
    pt.is_large_string,
)
"""Kinds of columns that a CSV file takes as they are."""


def to_json(value: Any) -> str:
    """A value in JSON, on one line.

    Times are texts in ISO 8601, durations seconds, decimals texts, bytes texts in base64; NaN and infinity are null.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity
        return json.dumps(_finite(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if value is None or isinstance(value, str | int) else _plain(value)


def csv_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as a CSV file has them: texts in place of lists, structs, bytes and what else has no form there."""
    return pa.schema([pa.field(field.name, _csv_type(field.type)) for field in schema])


def _csv_type(kind: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(kind):
        return _csv_type(kind.value_type)
    return kind if any(is_kind(kind) for is_kind in _AS_IT_IS) else pa.string()


def csv_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with the columns of `csv_schema`. Lists and structs are JSON, bytes base64."""
    arrays = [_csv_array(array, field.type) for array, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _csv_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pt.is_dictionary(array.type):
        return _csv_array(array.dictionary_decode(), kind)
    if pt.is_string_view(array.type):
        return array.cast(kind)
    values = array.to_pylist()
    texts = [None if value is None else value if isinstance(value, str) else _csv_text(value) for value in values]
    return pa.array(texts, kind)


def _csv_text(value: Any) -> str:
    return to_json(value) if isinstance(value, list | tuple | Mapping) else str(_plain(value))
