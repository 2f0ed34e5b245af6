"""Parquet files as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from .files import InputFile
from .json_kinds import Expected
from .table import BATCH_ROWS, Table


class ParquetTable(Table):
    """A Parquet file: schema and row counts from its footer, rows streamed page by page."""

    extensions = (".parquet", ".pq", ".parq")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        with file.open() as stream:
            parquet = pq.ParquetFile(stream)
            self.schema = parquet.schema_arrow
            metadata = parquet.metadata
            self._group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self.num_rows = sum(self._group_rows)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        ends = list(accumulate(self._group_rows))
        groups = [i for i, end in enumerate(ends) if start < end and end - self._group_rows[i] < stop]
        present = [name for name in columns if name in self.schema.names]
        row = ends[groups[0]] - self._group_rows[groups[0]] if groups else stop
        with self._file.open() as stream:
            # Buffered pages instead of whole column chunks: a file of one huge row group takes no more memory.
            parquet = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=present):
                first, last = max(start - row, 0), min(stop - row, batch.num_rows)
                if first < last:
                    yield batch.slice(first, last - first)
                row += batch.num_rows
                if row >= stop:
                    return
