"""Types of the columns of parts: each can be taken, written and read back."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.output.column_types import passed_field, roomy_type, stored, stored_type

TEXT = pa.large_string()
REQUIRED = pa.field("a", pa.int32(), nullable=False)
CASES = {
    "view": (pa.array(["a", None], pa.string_view()), TEXT),
    "binary view": (pa.array([b"a", None], pa.binary_view()), pa.large_binary()),
    "view in a struct": (pa.array([{"a": "x"}, None], pa.struct([("a", pa.string_view())])), pa.struct([("a", TEXT)])),
    "view in a list": (pa.array([["x"], None], pa.list_(pa.string_view())), pa.list_(TEXT)),
    "view in a large list": (pa.array([["x"], None], pa.large_list(pa.string_view())), pa.large_list(TEXT)),
    "view in a fixed list": (pa.array([["x"], None], pa.list_(pa.string_view(), 1)), pa.list_(TEXT, 1)),
    "view in a map": (pa.array([[("k", "v")], None], pa.map_(pa.string_view(), pa.string_view())), pa.map_(TEXT, TEXT)),
    "view in a dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int8()), pa.array(["a"], pa.string_view())),
        pa.dictionary(pa.int8(), TEXT),
    ),
    "view in an extension": (
        pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), pa.array(["{}", None], pa.string_view())),
        TEXT,
    ),
    "list view": (pa.array([["x"], None], pa.list_view(pa.string_view())), pa.list_view(TEXT)),
    "large list view": (pa.array([["x"], None], pa.large_list_view(pa.string_view())), pa.large_list_view(TEXT)),
    "runs": (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", None]), pa.string()),
    "runs in a list": (
        pa.ListArray.from_arrays([0, 2, 2], pa.RunEndEncodedArray.from_arrays([1, 3], ["a", "b"])),
        pa.list_(pa.string()),
    ),
    "required in a struct": (
        pa.array([{"a": 1}, {"a": 2}], pa.struct([REQUIRED])),
        pa.struct([("a", pa.int32())]),
    ),
    "extension": (pa.array([b"0" * 16, None], pa.uuid()), pa.uuid()),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
    "plain": (pa.array([1, None], pa.decimal128(5, 2)), pa.decimal128(5, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_type_is_stored_as_one_that_can_be_written(case: str) -> None:
    array, expected = CASES[case]
    assert stored_type(array.type) == expected
    assert stored_type(expected) == expected
    column = stored(array, expected)
    assert column.to_pylist() == array.to_pylist()
    table = pa.table({"x": column}).take(pa.array([1, 0, 0]))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue()))["x"].to_pylist() == [array.to_pylist()[i] for i in (1, 0, 0)]


def test_fields_are_nullable_at_every_depth() -> None:
    nested = pa.field("x", pa.list_(pa.field("item", pa.struct([REQUIRED]), nullable=False)), nullable=False)
    assert passed_field(nested) == pa.field("x", pa.list_(pa.field("item", pa.struct([("a", pa.int32())]))))


def test_results_in_memory_have_room() -> None:
    assert roomy_type(pa.string()) == pa.large_string()
    assert roomy_type(pa.list_(pa.list_(pa.string()))) == pa.large_list(pa.large_list(pa.large_string()))
    assert roomy_type(pa.int32()) == pa.int32()
