"""The layout of arrays from damaged files."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rwkv_batch.job.input.decoding import check_layout


def text(offsets: list[int], data: bytes) -> pa.Array:
    buffers = [None, pa.array(offsets, pa.int32()).buffers()[1], pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)


@pytest.mark.parametrize("offsets", [[0, 99], [0, 3, 2], [0, -1, 3]])
def test_offsets_outside_of_the_data(offsets: list[int]) -> None:
    with pytest.raises(pa.ArrowInvalid):
        check_layout(text(offsets, b"abc"))


def test_offsets_beside_text_that_is_not_utf8() -> None:
    fields = [text([0, 1, 1], b"\xff"), text([0, 3, 2], b"abc")]
    with pytest.raises(pa.ArrowInvalid):
        check_layout(pa.StructArray.from_arrays(fields, ["a", "b"]))


def test_an_index_outside_of_a_dictionary() -> None:
    good = pa.array(["a"]).dictionary_encode()
    with pytest.raises(pa.ArrowInvalid):
        check_layout(pa.DictionaryArray.from_arrays(pa.array([7]), good.dictionary, safe=False))


def test_text_that_is_not_utf8() -> None:
    bad = text([0, 1], b"\xff")
    for array in (bad, pa.ListArray.from_arrays([0, 1], bad), bad.dictionary_encode()):
        check_layout(array)
