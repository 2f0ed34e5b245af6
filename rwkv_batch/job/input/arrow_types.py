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


def is_utf8(kind: pa.DataType) -> bool:
    """Text, also in a column of bytes."""
    kind = value_type(kind)
    return is_text(kind) or bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def is_utf8s(kind: pa.DataType) -> bool:
    return is_list(kind, is_utf8)


def is_json(kind: pa.DataType) -> bool:
    """Text that may be JSON: text in UTF-8, or Arrow's extension type of JSON."""
    return is_utf8(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)


def is_messages(kind: pa.DataType) -> bool:
    """Lists of structs, or structs of lists, that have at least a role and a content; or JSON text."""

    def is_content(item: pa.DataType) -> bool:
        return is_utf8(item) or is_list(item, lambda part: is_utf8(part) or pt.is_struct(part)) or pt.is_null(item)

    def is_message(item: pa.DataType) -> bool:
        fields = {field.name: field.type for field in item} if pt.is_struct(item) else {}
        return {"role", "content"} <= fields.keys() and is_utf8(fields["role"]) and is_content(fields["content"])

    def has_lists(item: pa.DataType) -> bool:
        fields = {field.name: field.type for field in item} if pt.is_struct(item) else {}
        lists = [fields.get("role", pa.null()), fields.get("content", pa.null())]
        return is_list(lists[0], is_utf8) and is_list(lists[1], is_content)

    return is_list(kind, is_message) or has_lists(kind) or is_json(kind)
