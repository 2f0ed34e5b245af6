"""What every input format offers: a schema, a row count, and ranges of rows as Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

BATCH_ROWS = 512

READ_ERROR = "__read_error__"
"""A column that a table may add to its batches: "code: sentence" where a row could not be read, else null."""


class Table(Protocol):
    """One input file."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def num_rows(self) -> int: ...

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows from `start` to before `stop`, in batches of at most `BATCH_ROWS`, with those of `columns` it has."""
