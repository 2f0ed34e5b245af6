"""One type for a column that several files have."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.input.unify import converted, readable, unified

TEXT = pa.string()
LARGE = pa.large_string()
INT = pa.int64()
STRUCT = pa.struct([pa.field("a", pa.int32(), nullable=False)])


def list_of(item: pa.DataType) -> pa.DataType:
    return pa.list_(item)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (TEXT, pa.large_string(), pa.large_string()),
        (pa.dictionary(pa.int8(), TEXT), TEXT, TEXT),
        (pa.dictionary(pa.int8(), TEXT), pa.dictionary(pa.int32(), pa.large_string()), pa.large_string()),
        (pa.int32(), INT, INT),
        (pa.uint8(), pa.int16(), pa.int16()),
        (pa.float32(), pa.float64(), pa.float64()),
        (INT, pa.float64(), pa.float64()),
        (pa.decimal128(7, 5), pa.decimal128(8, 2), pa.decimal128(11, 5)),
        (pa.decimal128(7, 2), INT, pa.decimal128(21, 2)),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.timestamp("us", "UTC"), pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.date32(), pa.date64(), pa.date64()),
        (pa.time32("s"), pa.time64("us"), pa.time64("us")),
        (pa.duration("s"), pa.duration("ms"), pa.duration("ms")),
        (pa.null(), STRUCT, pa.struct([("a", pa.int32())])),
        (pa.binary(16), pa.binary(), pa.binary()),
        (pa.uuid(), pa.binary(16), pa.binary(16)),
        (pa.json_(), TEXT, TEXT),
        (pa.list_(pa.int8(), 2), list_of(INT), list_of(INT)),
        (list_of(TEXT), pa.large_list(pa.dictionary(pa.int8(), TEXT)), pa.large_list(TEXT)),
        (list_of(pa.null()), list_of(STRUCT), list_of(pa.struct([("a", pa.int32())]))),
        (STRUCT, pa.struct([("a", pa.int32()), ("b", TEXT)]), pa.struct([("a", pa.int32()), ("b", TEXT)])),
        (STRUCT, pa.struct([("a", pa.float64())]), pa.struct([("a", pa.float64())])),
        (pa.map_(TEXT, pa.int8()), pa.map_(TEXT, INT), pa.map_(TEXT, INT)),
    ],
    ids=str,
)
def test_types_that_hold_the_same_kind_of_value(first: Any, second: Any, expected: Any) -> None:
    assert unified([first, second]) == unified([second, first]) == expected
    assert unified([second, pa.null(), second, first]) == expected
    for kind in (first, second):
        assert converted(pa.nulls(3, kind), expected).null_count == 3


@pytest.mark.parametrize(
    "other", [TEXT, pa.bool_(), pa.timestamp("us"), list_of(INT), pa.struct([("a", INT)]), pa.map_(TEXT, INT)], ids=str
)
def test_types_that_hold_other_kinds_of_value(other: pa.DataType) -> None:
    with pytest.raises(pa.ArrowException):
        unified([INT, other])


def test_a_type_that_all_files_have_is_kept() -> None:
    for kind in (pa.dictionary(pa.int8(), TEXT), pa.timestamp("us", "Europe/Berlin"), pa.date32()):
        assert unified([kind, kind]) == kind


@pytest.mark.parametrize(
    ("kind", "expected", "value"),
    [
        (pa.string_view(), pa.large_string(), "x"),
        (pa.binary_view(), pa.large_binary(), b"x"),
        (list_of(pa.string_view()), list_of(pa.large_string()), ["x", None]),
        (pa.list_view(pa.string_view()), list_of(pa.large_string()), ["x", None]),
        (pa.large_list_view(TEXT), pa.large_list(TEXT), ["x", "y"]),
        (pa.list_(pa.string_view(), 2), pa.list_(pa.large_string(), 2), ["x", None]),
        (pa.map_(TEXT, pa.string_view()), pa.map_(TEXT, pa.large_string()), [("x", "y")]),
        (pa.struct([("a", list_of(pa.string_view()))]), pa.struct([("a", list_of(pa.large_string()))]), {"a": ["x"]}),
        (STRUCT, pa.struct([("a", pa.int32())]), {"a": 1}),
        (list_of(pa.field("element", TEXT, nullable=False)), list_of(TEXT), ["x"]),
        (pa.dictionary(pa.int8(), TEXT), pa.dictionary(pa.int8(), TEXT), "x"),
        (pa.run_end_encoded(pa.int32(), TEXT), TEXT, "x"),
    ],
    ids=str,
)
def test_views_and_required_fields_are_read_as_other_types(kind: Any, expected: Any, value: Any) -> None:
    assert readable(kind) == expected
    found = converted(pa.array([value, None], kind), expected)
    found.validate(full=True)
    assert found.type == expected
    assert found.to_pylist() == [value, None]


NOON = datetime(2024, 1, 1, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("values", "kind", "wider", "expected"),
    [
        ([1, None], INT, pa.float64(), [1.0, None]),
        ([Decimal("1.5")], pa.decimal128(7, 5), pa.decimal128(11, 5), [Decimal("1.50000")]),
        ([7], INT, pa.decimal128(21, 2), [Decimal("7.00")]),
        ([NOON], pa.timestamp("ms", "UTC"), pa.timestamp("us", "UTC"), [NOON]),
        ([date(2024, 1, 1)], pa.date32(), pa.date64(), [date(2024, 1, 1)]),
        ([timedelta(seconds=2)], pa.duration("s"), pa.duration("us"), [timedelta(seconds=2)]),
        ([{"a": 1}], STRUCT, pa.struct([("a", INT), ("b", TEXT)]), [{"a": 1, "b": None}]),
        ([{"a": 1}], STRUCT, pa.struct([("b", TEXT), ("a", INT)]), [{"b": None, "a": 1}]),
        ([[{"a": 1}]], list_of(STRUCT), list_of(pa.struct([("a", INT), ("b", TEXT)])), [[{"a": 1, "b": None}]]),
    ],
)
def test_values_keep_their_meaning(values: Any, kind: Any, wider: Any, expected: Any) -> None:
    assert converted(pa.array(values, kind), wider).to_pylist() == expected


def test_a_dictionary_inside_a_list_becomes_its_values() -> None:
    lists = pa.ListArray.from_arrays([0, 2], pa.array(["x", None]).dictionary_encode())
    assert converted(lists, list_of(TEXT)).to_pylist() == [["x", None]]


def test_a_cast_that_makes_an_invalid_array_is_not_used() -> None:
    """pyarrow 26 loses the nulls of the inner lists."""
    kind = pa.map_(TEXT, pa.field("item", list_of(pa.null()), nullable=False))
    array = pa.array([[("a", [None, None])], [("b", [None])]], kind)
    found = converted(array, readable(kind))
    found.validate(full=True)
    assert found.to_pylist() == array.to_pylist()


def test_a_dictionary_of_views() -> None:
    views = pa.DictionaryArray.from_arrays([1, None, 0], pa.array(["x", "y"], pa.string_view()))
    found = converted(views, readable(views.type))
    assert found.type == pa.dictionary(pa.int64(), pa.large_string())
    assert found.to_pylist() == ["y", None, "x"]


@pytest.mark.parametrize(("value", "kind", "other"), [(2**60 + 1, INT, pa.float64()), (2**63, pa.uint64(), INT)])
def test_a_value_that_does_not_fit_is_no_other_value(value: int, kind: Any, other: Any) -> None:
    assert unified([kind, other]) == other
    with pytest.raises(pa.ArrowInvalid):
        converted(pa.array([value], kind), other)


READ_TYPES: dict[str, tuple[pa.Array, pa.DataType]] = {
    "view": (pa.array(["a", None], pa.string_view()), LARGE),
    "binary view": (pa.array([b"a", None], pa.binary_view()), pa.large_binary()),
    "view in a struct": (pa.array([{"a": "x"}, None], pa.struct([("a", pa.string_view())])), pa.struct([("a", LARGE)])),
    "view in a list": (pa.array([["x"], None], pa.list_(pa.string_view())), pa.list_(LARGE)),
    "view in a large list": (pa.array([["x"], None], pa.large_list(pa.string_view())), pa.large_list(LARGE)),
    "view in a fixed list": (pa.array([["x"], None], pa.list_(pa.string_view(), 1)), pa.list_(LARGE, 1)),
    "view in a map": (
        pa.array([[("k", "v")], None], pa.map_(pa.string_view(), pa.string_view())),
        pa.map_(LARGE, LARGE),
    ),
    "view in a dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int8()), pa.array(["a"], pa.string_view())),
        pa.dictionary(pa.int8(), LARGE),
    ),
    "view in an extension": (
        pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), pa.array(["{}", None], pa.string_view())),
        LARGE,
    ),
    "list view": (pa.array([["x"], None], pa.list_view(pa.string_view())), pa.list_(LARGE)),
    "large list view": (pa.array([["x"], None], pa.large_list_view(pa.string_view())), pa.large_list(LARGE)),
    "runs": (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", None]), pa.string()),
    "runs in a list": (
        pa.ListArray.from_arrays([0, 2, 2], pa.RunEndEncodedArray.from_arrays([1, 3], ["a", "b"])),
        pa.list_(pa.string()),
    ),
    "required in a struct": (
        pa.array([{"a": 1}, {"a": 2}], pa.struct([STRUCT[0]])),
        pa.struct([("a", pa.int32())]),
    ),
    "extension": (pa.array([b"0" * 16, None], pa.uuid()), pa.uuid()),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
    "plain": (pa.array([1, None], pa.decimal128(5, 2)), pa.decimal128(5, 2)),
}


@pytest.mark.parametrize("case", READ_TYPES)
def test_what_is_read_can_be_taken_and_written(case: str) -> None:
    array, expected = READ_TYPES[case]
    assert readable(array.type) == expected
    assert readable(expected) == expected
    column = converted(array, expected)
    assert column.to_pylist() == array.to_pylist()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": column}).take(pa.array([1, 0, 0])), sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue()))["x"].to_pylist() == [array.to_pylist()[i] for i in (1, 0, 0)]
