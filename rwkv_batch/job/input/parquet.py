"""Parquet files as tables."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import RowError
from .decoding import DECODING_ERRORS, WatchedFile
from .files import InputFile
from .json_kinds import Expected
from .table import BATCH_BYTES, BATCH_ROWS, Rows, Table, batch_of

BLOCK_BYTES = 1 << 20
_SAMPLE_ROWS = 4
"""Rows that are read first, to learn their size."""


class ParquetTable(Table):
    """A Parquet file: schema and row counts from its footer, rows streamed page by page.

    Page checksums are verified. A row with a cell that cannot be decoded is an error row. After a damaged page, the
    rest of its column chunk cannot be decoded either.
    """

    extensions = (".parquet", ".pq", ".parq")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        with file.open() as stream:
            parquet = pq.ParquetFile(stream)
            self.schema = parquet.schema_arrow
            metadata = parquet.metadata
            self._group_rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._names = frozenset(self.schema.names)
        self.num_rows = sum(self._group_rows)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        present = [name for name in columns if name in self._names]
        with self._file.open() as stream:
            parquet = _opened(stream, self._file.name)
            chunks = _chunks(parquet.schema, self._names, present)
            for index, end in enumerate(accumulate(self._group_rows)):
                row = end - self._group_rows[index]
                if row >= stop or end <= start:
                    continue
                for rows in _RowGroup(self._file.name, stream, parquet, index, end - row, chunks).read(present):
                    first, last = max(start - row, 0), min(stop - row, rows.batch.num_rows)
                    if first < last:
                        yield rows.slice(first, last)
                    row += rows.batch.num_rows
                    if row >= stop:
                        return


@dataclass(frozen=True)
class _RowGroup:
    """Row group `index` of a file.

    Args:
        file: its name.
        stream: the open file that `parquet` reads.
        chunks: the numbers of the column chunks that are read.
    """

    file: str
    stream: Any
    parquet: pq.ParquetFile
    index: int
    num_rows: int
    chunks: Sequence[int]

    def read(self, columns: Sequence[str]) -> Iterator[Rows]:
        """Yields all rows. Raises OSError where the bytes cannot be read."""
        done = 0
        try:
            at_once = self._rows_at_once(columns)
            for batch in self.parquet.iter_batches(at_once, row_groups=[self.index], columns=columns):
                batch.validate()
                done += batch.num_rows
                yield Rows(batch.select(columns), {})
        except MemoryError:  # an ArrowException too, and no damage
            raise
        except DECODING_ERRORS:  # of some column, which the next lines find
            pass
        if done < self.num_rows:
            yield from self._read_by_column(columns, done)

    def _rows_at_once(self, columns: Sequence[str]) -> int:
        """The number of rows that hold BATCH_BYTES, by their mean size; 1 to BATCH_ROWS.

        The first rows count too, because a value that is stored once, in a dictionary, may stand in every row.
        """
        first = next(self.parquet.iter_batches(_SAMPLE_ROWS, row_groups=[self.index], columns=columns), None)
        if first is None:
            return BATCH_ROWS
        # The metadata of an encrypted column would end the process. These columns could be decoded.
        group = self.parquet.metadata.row_group(self.index)
        stored = sum(group.column(number).total_uncompressed_size for number in self.chunks)
        row_bytes = max(first.nbytes / first.num_rows, stored / self.num_rows, 1)
        return int(min(max(BATCH_BYTES / row_bytes, 1), BATCH_ROWS))

    def _read_by_column(self, columns: Sequence[str], start: int) -> Iterator[Rows]:
        """Yields the rows from `start` on. Each column is decoded by itself, so that one spoils no other."""
        file = WatchedFile(self.stream)
        parquet = _opened(pa.PythonFile(file, mode="r"), self.file)
        cells = {name: self._cells(parquet, file, name) for name in columns}
        for first in range(0, self.num_rows, BATCH_ROWS):
            count = min(BATCH_ROWS, self.num_rows - first)
            found = {name: next(chunks) for name, chunks in cells.items()}
            error = next((error for _, error in found.values() if error is not None), None)
            errors = {} if error is None else dict.fromkeys(range(count), error)
            rows = Rows(batch_of({name: array for name, (array, _) in found.items()}, count), errors)
            if first + count > start:
                yield rows.slice(max(start - first, 0), count)

    def _cells(
        self, parquet: pq.ParquetFile, file: WatchedFile, column: str
    ) -> Iterator[tuple[pa.Array, RowError | None]]:
        """Yields a column, `BATCH_ROWS` rows at a time; nulls and the reason from where it cannot be decoded."""
        batches = parquet.iter_batches(BATCH_ROWS, row_groups=[self.index], columns=[column])
        left = self.num_rows
        reason = "fewer values than rows"
        try:
            while left:
                pieces: list[pa.Array] = []
                while sum(map(len, pieces)) < min(BATCH_ROWS, left):
                    pieces.append(next(batches).select([column]).column(0))
                values = pa.concat_arrays(pieces)
                left -= len(values)
                yield values, None
        except StopIteration:
            pass
        except MemoryError:
            raise
        except DECODING_ERRORS as found:
            if file.error is not None:
                raise OSError(errno.EIO, f"cannot be read: {file.error}", self.file) from found
            reason = str(found)
        error = RowError("read_error", f"{self.file}: row group {self.index}, column {column!r}: {reason}")
        kind = parquet.schema_arrow.field(column).type
        while left:
            count = min(BATCH_ROWS, left)
            left -= count
            yield pa.nulls(count, kind), error


def _chunks(schema: pq.ParquetSchema, names: Collection[str], columns: Sequence[str]) -> list[int]:
    """Returns the numbers of the column chunks of `columns`, among all `names`. A nested column has several."""
    wanted = {*columns}
    paths = [schema.column(number).path for number in range(len(schema))]
    fields = [path if path in names else path.partition(".")[0] for path in paths]
    return [number for number, field in enumerate(fields) if field in wanted]


def _opened(stream: Any, name: str) -> pq.ParquetFile:
    """Opens a file whose footer could be read before. Raises OSError with the file's name where that fails."""
    try:
        # Buffered pages instead of whole column chunks: a file of one huge row group takes no more memory.
        return pq.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK_BYTES, page_checksum_verification=True)
    except DECODING_ERRORS as error:
        raise OSError(errno.EIO, f"cannot be read: {error}", name) from error
