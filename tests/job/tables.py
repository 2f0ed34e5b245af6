"""Tables at random: every Arrow type that Parquet can hold, and files of one data set that differ as real ones do."""

from __future__ import annotations

import datetime
import decimal
import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt
from hypothesis import strategies as st

LEAVES = [
    *(pa.bool_(), pa.null(), pa.date32(), pa.date64(), pa.float16(), pa.float32(), pa.float64()),
    *(kind() for kind in (pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64)),
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
    *(pa.decimal128(7, 2), pa.decimal128(38, 10), pa.decimal256(60, 5)),
    *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.duration(unit) for unit in ("s", "ms", "us", "ns")),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Europe/Berlin")),
    *(
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.int64()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ),
    *(pa.uuid(), pa.json_(), pa.bool8(), pa.fixed_shape_tensor(pa.int16(), [2])),
]


def _nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    fields = st.builds(
        lambda kind, nullable: pa.field("item", kind, nullable or pt.is_null(kind)), inner, st.booleans()
    )
    lists = st.sampled_from([pa.list_, pa.large_list, pa.list_view, lambda field: pa.list_(field, 2)])
    return st.one_of(
        st.builds(lambda make, field: make(field), lists, fields),
        st.builds(lambda a, b: pa.struct([a.with_name("a"), b.with_name("b ü")]), fields, fields),
        st.builds(lambda key, field: pa.map_(key, field), st.sampled_from([pa.string(), pa.int32()]), fields),
    )


KINDS = st.recursive(st.sampled_from(LEAVES), _nested, max_leaves=4)
"""Arrow types of columns."""


def column(kind: pa.DataType, count: int, dice: random.Random, *, nullable: bool) -> pa.Array:
    """Returns random values of a type."""
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    values = [None if nullable and dice.random() < 0.3 else _value(storage, dice) for _ in range(count)]
    if pt.is_dictionary(storage):
        return pa.array(values, storage.value_type).cast(storage)
    array = pa.array(values, storage)
    return pa.ExtensionArray.from_storage(kind, array) if storage is not kind else array


def _value(kind: pa.DataType, dice: random.Random) -> Any:
    if pt.is_dictionary(kind):
        return _value(kind.value_type, dice)
    if isinstance(kind, pa.BaseExtensionType):
        return _value(kind.storage_type, dice)
    if pt.is_struct(kind):
        return {field.name: _of_field(field, dice) for field in kind}
    if pt.is_map(kind):
        return [(_value(kind.key_type, dice), _of_field(kind.item_field, dice)) for _ in range(dice.randrange(3))]
    if pt.is_fixed_size_list(kind):
        return [_of_field(kind.value_field, dice) for _ in range(kind.list_size)]
    if hasattr(kind, "value_field"):
        return [_of_field(kind.value_field, dice) for _ in range(dice.randrange(3))]
    return next(make(kind, dice) for check, make in _MAKERS if check(kind))


def _of_field(field: pa.Field, dice: random.Random) -> Any:
    return None if field.nullable and dice.random() < 0.3 else _value(field.type, dice)


def _text(dice: random.Random) -> str:
    return dice.choice(["", "a", "zwölf", "\U0001f600\n\x00", "x" * dice.randrange(200)])


def _moment(dice: random.Random) -> datetime.datetime:
    return datetime.datetime(2000, 1, 1) + datetime.timedelta(seconds=dice.randrange(10**8))


def _whole(kind: pa.DataType, dice: random.Random) -> int:
    low, width = (0 if pt.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))), 2**kind.bit_width
    return dice.choice([low, low + width - 1, max(0, low + dice.randrange(width))])


_MAKERS: Sequence[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, random.Random], Any]]] = [
    (pt.is_null, lambda kind, dice: None),
    (pt.is_boolean, lambda kind, dice: dice.random() < 0.5),
    (pt.is_integer, _whole),
    (pt.is_floating, lambda kind, dice: dice.choice([0.0, -1.5, float("inf"), 0.25 * dice.randrange(100)])),
    (pt.is_decimal, lambda kind, dice: decimal.Decimal(dice.randrange(-9999, 9999)).scaleb(-2)),
    (pt.is_date, lambda kind, dice: _moment(dice).date()),
    (pt.is_time, lambda kind, dice: datetime.time(dice.randrange(24), dice.randrange(60), dice.randrange(60))),
    (pt.is_duration, lambda kind, dice: datetime.timedelta(seconds=dice.randrange(-(10**6), 10**6))),
    (pt.is_timestamp, lambda kind, dice: _moment(dice)),
    (pt.is_fixed_size_binary, lambda kind, dice: dice.randbytes(kind.byte_width)),
    (
        lambda kind: pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind),
        lambda kind, dice: dice.randbytes(dice.randrange(9)),
    ),
    (lambda kind: True, lambda kind, dice: _text(dice)),
]
"""Whether a maker is for a type, and the maker of a value."""


def sibling(kind: pa.DataType, dice: random.Random) -> pa.DataType:
    """Returns the type, or one that another writer would have given the same column."""
    families = [
        [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
        [pa.binary(), pa.large_binary(), pa.binary_view()],
        [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.null()],
        [pa.float32(), pa.float64()],
        [pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")],
    ]
    return next((dice.choice(family) for family in families if kind in family), kind)
