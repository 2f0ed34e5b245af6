"""Tables: rows are divided into parts of a bounded size."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rwkv_batch.errors import RowError
from rwkv_batch.job.input import table
from rwkv_batch.job.input.table import Rows


def test_parts_are_bounded_in_bytes_and_keep_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BATCH_BYTES", 1000)
    texts = ["a" * size for size in (10, 10, 400, 400, 400, 5000, 10, 10)]
    errors = {row: RowError("read_error", f"{row}") for row in (0, 5, 7)}
    parts = list(Rows(pa.record_batch({"x": texts}), errors).parts())
    assert [text for part in parts for text in part.batch["x"].to_pylist()] == texts
    assert all(part.batch.num_rows == 1 or part.batch.nbytes <= 1000 for part in parts)
    assert len(parts) <= 6
    found = [part.errors.get(row) for part in parts for row in range(part.batch.num_rows)]
    assert [row for row, error in enumerate(found) if error is not None] == [0, 5, 7]
    assert [error.message for error in found if error is not None] == ["0", "5", "7"]
