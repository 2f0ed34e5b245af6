"""Values of rows: times in nanoseconds do not depend on other packages, and a cell that cannot be read is named."""

from __future__ import annotations

import datetime as dt
import sys

import pyarrow as pa
import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.job.input.cells import records

TIME = dt.datetime(1970, 1, 1, 0, 0, 1, 234567)
DURATION = dt.timedelta(seconds=1, microseconds=234567)


@pytest.mark.parametrize("has_pandas", [True, False])
@pytest.mark.parametrize(
    ("kind", "exact", "longer"),
    [
        (pa.timestamp("ns"), TIME, "1970-01-01 00:00:01.234567891"),
        (pa.timestamp("ns", "UTC"), TIME.replace(tzinfo=dt.timezone.utc), "1970-01-01 00:00:01.234567891Z"),
        (pa.time64("ns"), TIME.time(), "00:00:01.234567891"),
        (pa.duration("ns"), DURATION, 1_234_567_891),
    ],
)
def test_nanoseconds(
    monkeypatch: pytest.MonkeyPatch, has_pandas: bool, kind: pa.DataType, exact: object, longer: object
) -> None:
    if not has_pandas:
        monkeypatch.setitem(sys.modules, "pandas", None)
    times = pa.array([1_234_567_000, 1_234_567_891, None], kind)
    batch = pa.record_batch(
        {
            "time": times,
            "list": pa.ListArray.from_arrays([0, 1, 2, 3], times),
            "struct": pa.StructArray.from_arrays([times], ["a"]),
            "dictionary": times.dictionary_encode(),
        }
    )
    expected = [{"time": x, "list": [x], "struct": {"a": x}, "dictionary": x} for x in (exact, longer, None)]
    found = [*records(batch, frozenset())]
    assert found == expected
    assert [type(row["time"]) for row in found if isinstance(row, dict)] == [type(exact), type(longer), type(None)]


def test_a_cell_that_cannot_be_read_is_named() -> None:
    text = pa.array([b"a", b"\xff"]).view(pa.string())
    first, second = records(pa.record_batch({"x": [1, 2], "text": text}), frozenset())
    assert first == {"x": 1, "text": "a"}
    assert isinstance(second, RowError)
    assert (second.code, "column 'text'" in second.message) == ("invalid_text", True)
    _, second = records(pa.record_batch({"when": pa.array([0, 2**60], pa.timestamp("us"))}), frozenset())
    assert isinstance(second, RowError)
    assert (second.code, "column 'when'" in second.message) == ("bad_type", True)
