"""Kinds of JSON values: widening is a join, and the Arrow column of a kind holds every value that it was widened by."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.job.input.json_kinds import (
    JSON_TEXT,
    NULL,
    NUMBERS_BY_NAME,
    STRING,
    STRINGS,
    JsonKind,
    ListOf,
    Struct,
    join,
    settled,
    widen,
)

SCALARS = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def kind_of(values: list[Any]) -> JsonKind:
    """The kind of a column with these values."""
    kind: JsonKind = NULL
    for value in values:
        kind = widen(kind, value)
    return kind


@given(st.lists(VALUES, max_size=4))
def test_a_kind_holds_every_value_that_it_was_widened_by(values: list[Any]) -> None:
    kind = settled(kind_of(values))
    assert all(map(kind.fits, values))
    column = pa.array([kind.for_arrow(value) for value in values], kind.arrow)
    pq.write_table(pa.table({"x": column}), pa.BufferOutputStream())
    if kind is JSON_TEXT:
        assert [text if text is None else json.loads(text) for text in column.to_pylist()] == values


@given(st.lists(VALUES, max_size=4), st.randoms())
def test_the_order_of_values_does_not_matter(values: list[Any], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    halves = join(kind_of(values[:2]), kind_of(values[2:]))
    assert _names_sorted(kind_of(values)) == _names_sorted(kind_of(shuffled)) == _names_sorted(halves)


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_a_value_seen_before_changes_nothing(values: list[Any]) -> None:
    kind = kind_of(values)
    assert all(widen(kind, value) is kind for value in values)


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (STRINGS, 5, "x: got 5, expected a string or a list of strings"),
        (NUMBERS_BY_NAME, [True], "x: got a list, expected an object of numbers"),
        (NUMBERS_BY_NAME, {"0": 1, "1": "a"}, "x.1: got a string, expected a number"),
        (ListOf(STRING), {}, "x: got an object, expected a list, each item a string"),
        (ListOf(STRING), ["a", True], "x[1]: got true, expected a string"),
        (
            Struct({"a": STRING, "b": Struct({"c": STRINGS})}),
            {"b": {"c": 5}},
            "x.b.c: got 5, expected a string or a list of strings",
        ),
    ],
)
def test_a_fault_names_the_place_and_what_was_given(kind: JsonKind, value: Any, sentence: str) -> None:
    assert not kind.fits(value)
    assert str(kind.fault("x", value)) == sentence


def _names_sorted(kind: JsonKind) -> Any:
    """The kind with the names of its structs in one order."""
    if isinstance(kind, ListOf):
        return [_names_sorted(kind.item)]
    if isinstance(kind, Struct):
        return {name: _names_sorted(kind.fields[name]) for name in sorted(kind.fields)}
    return kind
