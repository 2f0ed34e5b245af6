"""One type for a column that several files have: types that hold the same kind of value are unified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
Change: TypeAlias = Callable[[pa.DataType], pa.DataType]


def readable(kind: pa.DataType) -> pa.DataType:
    """The type in which a column is read.

    It has no views and runs, for which pyarrow lacks functions, and is nullable at every depth. Cells of any column may
    become null, because a file may lack the column, and because a cell may be unreadable.
    """
    return _changed(kind, _without_view)


def unified(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """The narrowest type that holds the values of all these types.

    Integers, floats and decimals widen, times take the finest unit and UTC, structs get the fields of all. Layouts of
    one type, such as dictionaries, are the plain type.

    Raises:
        pa.ArrowException: there is no such type.
    """
    first, *others = dict.fromkeys(kinds)
    if not others:
        return first
    plain = [_changed(kind, _plain) for kind in (first, *others)]
    if any(map(pt.is_decimal, plain)):
        plain = [_decimal(kind) if pt.is_integer(kind) else kind for kind in plain]
    schemas = [pa.schema([("", kind)]) for kind in plain]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def converted(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns the array as another type. Raises pa.ArrowException where a value does not fit."""
    if array.type == kind:
        return array
    if pt.is_run_end_encoded(array.type):
        return converted(pc.run_end_decode(array), kind)
    found = None if _has_list_view(array.type) else _cast(array, kind)  # pyarrow 26 casts list views wrongly
    return pa.array(array.to_pylist(), kind) if found is None else found


def microseconds(kind: pa.DataType) -> pa.DataType:
    """The type with microseconds in place of nanoseconds."""
    return _changed(kind, _microseconds)


def text_as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes in place of text, in the same layout."""
    return _changed(kind, lambda inner: _BYTES.get(inner, inner))


def nanoseconds_as_text(kind: pa.DataType) -> pa.DataType:
    """The type with text in place of times in nanoseconds, and a number in place of durations in nanoseconds."""
    return _changed(kind, _nanoseconds_as_text)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Returns the array as another type; None where this version of pyarrow lacks the cast, or makes no valid array."""
    try:
        found = array.cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return None
    try:
        found.validate()
    except pa.ArrowInvalid:
        return None
    return found


def _without_view(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        storage = readable(kind.storage_type)
        return kind if storage == kind.storage_type else storage
    if pt.is_dictionary(kind):
        return pa.dictionary(kind.index_type, readable(kind.value_type), kind.ordered)
    if pt.is_run_end_encoded(kind):
        return readable(kind.value_type)
    if pt.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pt.is_binary_view(kind) else kind


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without what is layout or display: dictionaries, extensions, time zones other than UTC."""
    if pt.is_dictionary(kind):
        return _changed(kind.value_type, _plain)
    if isinstance(kind, pa.BaseExtensionType):
        return _changed(kind.storage_type, _plain)
    return pa.timestamp(kind.unit, "UTC") if pt.is_timestamp(kind) and kind.tz is not None else kind


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(kind):
        changed = microseconds(kind.value_type)
        return kind if changed == kind.value_type else changed
    if not _has_nanoseconds(kind):
        return kind
    if pt.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pt.is_duration(kind) else pa.time64("us")


def _nanoseconds_as_text(kind: pa.DataType) -> pa.DataType:
    if pt.is_dictionary(kind):
        return nanoseconds_as_text(kind.value_type)
    if not _has_nanoseconds(kind):
        return kind
    return pa.int64() if pt.is_duration(kind) else pa.string()


def _has_nanoseconds(kind: pa.DataType) -> bool:
    return bool((pt.is_timestamp(kind) or pt.is_duration(kind) or pt.is_time(kind)) and kind.unit == "ns")


def _decimal(kind: pa.DataType) -> pa.DataType:
    """The decimals that hold all integers of a type. With a decimal, pyarrow unifies integers to too few digits."""
    largest = 2**kind.bit_width if pt.is_unsigned_integer(kind) else 2 ** (kind.bit_width - 1)
    return pa.decimal128(len(str(largest)), 0)


def _changed(kind: pa.DataType, change: Change) -> pa.DataType:
    """The type with all types inside it changed, and all fields inside it nullable."""

    def nullable(field: pa.Field) -> pa.Field:
        return field.with_type(_changed(field.type, change)).with_nullable(True)

    if pt.is_struct(kind):
        return pa.struct([nullable(field) for field in kind])
    if pt.is_map(kind):
        return pa.map_(_changed(kind.key_type, change), nullable(kind.item_field), keys_sorted=kind.keys_sorted)
    if pt.is_list(kind) or pt.is_list_view(kind):
        return pa.list_(nullable(kind.value_field))
    if pt.is_large_list(kind) or pt.is_large_list_view(kind):
        return pa.large_list(nullable(kind.value_field))
    if pt.is_fixed_size_list(kind):
        return pa.list_(nullable(kind.value_field), kind.list_size)
    return change(kind)


def _has_list_view(kind: pa.DataType) -> bool:
    children = (kind.field(index).type for index in range(kind.num_fields))
    return pt.is_list_view(kind) or pt.is_large_list_view(kind) or any(map(_has_list_view, children))
