"""Arrow IPC files as tables, in the file format (also called Feather) and in the stream format."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from ...errors import RowError
from .continued import Continued
from .decoding import DECODING_ERRORS, WatchedFile, check_layout
from .files import InputFile
from .json_kinds import Expected
from .table import BATCH_ROWS, Rows, Table, batch_of

FILE_MAGIC, STREAM_MAGIC = b"ARROW1", b"\xff\xff\xff\xff"


class ArrowTable(Table):
    """An Arrow IPC file: schema from its beginning, rows from its record batches.

    A row with a cell in damaged data is an error row, as are all rows of its record batch.
    """

    extensions = (".arrow", ".feather", ".ipc", ".arrows")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        with file.open() as stream:
            self._has_index = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
            stream.seek(0)
            self.schema = (ipc.open_file if self._has_index else ipc.open_stream)(stream).schema
        with file.open() as stream:
            reader = self._reader(stream, [])
            count = reader.num_record_batches if self._has_index else None
            batches = reader if count is None else map(reader.get_batch, range(count))
            self._ends = [*accumulate(batch.num_rows for batch in batches)]
        self.num_rows = self._ends[-1] if self._ends else 0
        self._continued = Continued(self._all_pieces, self.num_rows)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith((FILE_MAGIC, STREAM_MAGIC))

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        if start >= stop:
            return
        known = [name for name in columns if name in self.schema.names]
        for rows in self._between(start, stop, known):
            for first in range(0, rows.batch.num_rows, BATCH_ROWS):
                yield rows.slice(first, min(first + BATCH_ROWS, rows.batch.num_rows))

    def _between(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        """Yields rows of the record batches that have some."""
        if not self._has_index:
            yield from (piece.rows for piece in self._continued.read(start, stop, columns))
            return
        chosen = [i for i, end in enumerate(self._ends) if end > start and self._begin(i) < stop]
        row = self._begin(chosen[0])
        for rows in self._record_batches(columns, chosen):
            count = rows.batch.num_rows
            yield rows.slice(max(start - row, 0), min(stop - row, count))
            row += count

    def _all_pieces(self, columns: Sequence[str]) -> Iterator[_Piece]:
        return map(_Piece, self._record_batches(columns, range(len(self._ends))))

    def _record_batches(self, columns: Sequence[str], chosen: Iterable[int]) -> Iterator[Rows]:
        """Yields the chosen record batches, of a stream all of them; nulls and an error in place of damaged columns.

        Raises:
            OSError: the bytes cannot be read.
        """
        with self._file.open() as stream:
            reader = self._reader(stream, columns)
            for index in chosen:
                try:
                    batch = self._next(reader, index).select(columns)
                    for column in batch.columns:
                        check_layout(column)
                except MemoryError:  # an ArrowException too, and no damage
                    raise
                except DECODING_ERRORS:  # of some column, which the next line finds
                    yield self._by_column(columns, index)
                else:
                    yield Rows(batch, {})

    def _by_column(self, columns: Sequence[str], index: int) -> Rows:
        """One record batch, of which each column is decoded by itself, so that one spoils no other."""
        cells: dict[str, pa.Array] = {}
        errors: dict[int, RowError] = {}
        count = self._ends[index] - self._begin(index)
        for name in columns:
            with self._file.open() as stream:
                watched = WatchedFile(stream)
                try:
                    cells[name] = self._column(pa.PythonFile(watched, mode="r"), name, index)
                except MemoryError:
                    raise
                except DECODING_ERRORS as error:
                    if watched.error is not None:
                        reason = f"cannot be read: {watched.error}"
                        raise OSError(errno.EIO, reason, self._file.name) from error
                    cells[name] = pa.nulls(count, self.schema.field(name).type)
                    where = f"{self._file.name}: record batch {index}, column {name!r}"
                    errors = dict.fromkeys(range(count), RowError("read_error", f"{where}: {error}"))
        return Rows(batch_of(cells, count), errors)

    def _column(self, stream: Any, name: str, index: int) -> pa.Array:
        """A column of one record batch."""
        reader = self._reader(stream, [name])
        for before in range(0 if self._has_index else index):
            with suppress(*DECODING_ERRORS):
                self._next(reader, before)
        column = self._next(reader, index).column(name)
        check_layout(column)
        return column

    def _begin(self, index: int) -> int:
        """The first row of a record batch."""
        return self._ends[index - 1] if index else 0

    def _reader(self, stream: Any, columns: Sequence[str]) -> Any:
        """Returns a reader of some columns, at least one."""
        fields = [index for index, name in enumerate(self.schema.names) if name in columns]
        options = ipc.IpcReadOptions(included_fields=fields or [*range(min(len(self.schema), 1))])
        return (ipc.open_file if self._has_index else ipc.open_stream)(stream, options=options)

    def _next(self, reader: Any, index: int) -> pa.RecordBatch:
        """Returns a record batch; of a stream the next one, whatever its index."""
        return reader.get_batch(index) if self._has_index else reader.read_next_batch()


@dataclass(frozen=True)
class _Piece:
    """Rows as a sequence that can be sliced."""

    rows: Rows

    def __len__(self) -> int:
        return self.rows.batch.num_rows

    def __getitem__(self, part: slice) -> _Piece:
        return _Piece(self.rows.slice(*part.indices(len(self))[:2]))
