"""Questions about the Arrow types of input columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.types as pt

Predicate: TypeAlias = Callable[[pa.DataType], bool]


class Check(NamedTuple):
    """The types that a column may have: a predicate, and the types in words."""

    accepts: Predicate
    expected: str


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values, and any other type itself."""
    return kind.value_type if pt.is_dictionary(kind) else kind


def or_null(check: Predicate) -> Predicate:
    """Accepts also columns of nulls only, and dictionaries."""
    return lambda kind: pt.is_null(kind) or check(value_type(kind))


def is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def is_text(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_list(kind: pa.DataType, is_item: Predicate) -> bool:
    """Lists of any layout. An item type of null is right: then all lists are empty, or hold nulls."""
    is_any_list = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind) or pt.is_list_view(kind)
    return bool(is_any_list and (pt.is_null(kind.value_type) or is_item(kind.value_type)))


def is_ids(kind: pa.DataType) -> bool:
    return is_list(kind, pt.is_integer)


def is_lists_of_ids(kind: pa.DataType) -> bool:
    return is_list(kind, is_ids)


def is_texts(kind: pa.DataType) -> bool:
    return is_list(kind, is_text)


def is_messages(kind: pa.DataType) -> bool:
    """Lists of structs that have at least a role and a content, both text."""

    def is_message(item: pa.DataType) -> bool:
        fields = {field.name: field.type for field in item} if pt.is_struct(item) else {}
        return all(name in fields and is_text(fields[name]) for name in ("role", "content"))

    return is_list(kind, is_message)
