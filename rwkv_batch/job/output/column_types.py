"""Arrow types of the columns in parts and segments."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

_LISTS = (
    (pt.is_list, pa.list_),
    (pt.is_large_list, pa.large_list),
    (pt.is_list_view, pa.list_view),
    (pt.is_large_list_view, pa.large_list_view),
)


def passed_field(field: pa.Field) -> pa.Field:
    """Returns the field under which a part repeats an input column: nullable, and of a type that can be written."""
    return field.with_type(stored_type(field.type)).with_nullable(True)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type in which a part holds values of a type of the input.

    pyarrow cannot take rows of views, and Parquet has no run-end encoding: views become large strings and binaries,
    runs become their values. No field inside is required, because a file may lack the column. An extension type
    whose storage changes becomes its storage.
    """
    if pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary_view(kind):
        return pa.large_binary()
    if pt.is_run_end_encoded(kind):
        return stored_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        stored = stored_type(kind.storage_type)
        return kind if stored == kind.storage_type else stored
    if pt.is_dictionary(kind):
        return pa.dictionary(kind.index_type, stored_type(kind.value_type), kind.ordered)
    return _stored_nested(kind)


def _stored_nested(kind: pa.DataType) -> pa.DataType:
    """Returns `stored_type` of a struct, map or list, and any other type itself."""
    if pt.is_struct(kind):
        return pa.struct([passed_field(kind.field(index)) for index in range(kind.num_fields)])
    if pt.is_map(kind):
        return pa.map_(stored_type(kind.key_type), passed_field(kind.item_field), kind.keys_sorted)
    if pt.is_fixed_size_list(kind):
        return pa.list_(passed_field(kind.value_field), kind.list_size)
    for is_kind, make in _LISTS:
        if is_kind(kind):
            return make(passed_field(kind.value_field))
    return kind


def roomy_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a result column in memory: more than 2 GiB of texts or of tokens fit into it."""
    if pt.is_string(kind):
        return pa.large_string()
    return pa.large_list(roomy_type(kind.value_type)) if pt.is_list(kind) else kind


def stored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns a column of the input as `kind`, which is `stored_type` of its type."""
    if array.type == kind:
        return array
    try:
        return array.cast(kind)
    except pa.ArrowNotImplementedError:  # casts of runs and of list views; these types are rare
        return pa.array(array.to_pylist(), kind)
