"""Arrow IPC files as tables, in the file format (also called Feather) and in the stream format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import pyarrow as pa
from pyarrow import ipc

from .continued import Continued
from .files import InputFile
from .json_kinds import Expected
from .table import BATCH_ROWS, Rows, Table, batch_of

FILE_MAGIC, STREAM_MAGIC = b"ARROW1", b"\xff\xff\xff\xff"


class ArrowTable(Table):
    """An Arrow IPC file: schema from its beginning, rows from its record batches."""

    extensions = (".arrow", ".feather", ".ipc", ".arrows")

    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None:
        self._file = file
        with file.open() as stream:
            self._has_index = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
            stream.seek(0)
            self.schema = (ipc.open_file if self._has_index else ipc.open_stream)(stream).schema
        first = self.schema.names[:1]
        self._ends = [*accumulate(batch.num_rows for batch in self._batches(first))]
        self.num_rows = self._ends[-1] if self._ends else 0
        self._continued = Continued(self._batches, self.num_rows)

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith((FILE_MAGIC, STREAM_MAGIC))

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        if start >= stop:
            return
        known = [name for name in columns if name in self.schema.names]
        for piece in self._pieces(start, stop, known):
            for first in range(0, len(piece), BATCH_ROWS):
                part = piece.slice(first, BATCH_ROWS)
                yield Rows(batch_of({name: part.column(name) for name in known}, len(part)), {})

    def _pieces(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields rows of the record batches that have some."""
        if not self._has_index:
            yield from self._continued.read(start, stop, columns)
            return
        chosen = [i for i, end in enumerate(self._ends) if end > start and ([0, *self._ends][i] < stop)]
        row = [0, *self._ends][chosen[0]]
        for batch in self._batches(columns, chosen):
            first, last = max(start - row, 0), min(stop - row, batch.num_rows)
            yield batch.slice(first, last - first)
            row += batch.num_rows

    def _batches(self, columns: Sequence[str], chosen: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields record batches with some columns, at least one.

        Args:
            chosen: which ones, in a file with an index; None for all.
        """
        fields = [index for index, name in enumerate(self.schema.names) if name in columns]
        options = ipc.IpcReadOptions(included_fields=fields or [*range(min(len(self.schema), 1))])
        with self._file.open() as stream:
            if self._has_index:
                reader = ipc.open_file(stream, options=options)
                yield from map(reader.get_batch, range(reader.num_record_batches) if chosen is None else chosen)
            else:
                yield from ipc.open_stream(stream, options=options)
