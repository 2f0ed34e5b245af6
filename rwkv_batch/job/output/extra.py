"""The columns of output.extra: the prompt as the model read it, the row's number, and its file.

They are made when a part is written, from the input, as the columns that parts repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from ...rows import ErrorRow, ScoreRow
from ..input.reader import Input
from ..input.rows import RowKey, RowParser
from ..input.table import BATCH_ROWS, READ_ERROR
from ..plan import Unit

TYPES = {"prompt": pa.string(), "input_row": pa.int64(), "input_file": pa.string()}
"""Extra column → its type."""


class RowSource:
    """The rows of a job's input, with the extra columns.

    Args:
        source: the input.
        parser: makes prompts of rows.
        read: the columns that the parser needs.
        files: the names of the input's files.
        names: extra column → its name in parts.
    """

    def __init__(
        self, source: Input, parser: RowParser, read: Sequence[str], files: Sequence[str], names: Mapping[str, str]
    ) -> None:
        self._source = source
        self._parser = parser
        self._read = read
        self._files = pa.array(files, pa.string())
        self._names = names

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows from `start` to before `stop` in batches with exactly `columns`, and perhaps READ_ERROR."""
        extra = {name: own for own, name in self._names.items() if name in columns}
        needed = dict.fromkeys(name for name in columns if name not in extra)
        needed |= dict.fromkeys(self._read if "prompt" in extra.values() else ())
        for batch in self._batches(start, stop, list(needed)):
            rows = range(start, start + batch.num_rows)
            start = rows.stop
            arrays = [self._extra(extra[name], rows, batch) if name in extra else batch[name] for name in columns]
            names = list(columns)
            if READ_ERROR in batch.schema.names:
                arrays.append(batch[READ_ERROR])
                names.append(READ_ERROR)
            yield pa.RecordBatch.from_arrays(arrays, names)

    def _batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if columns:
            yield from self._source.read(start, stop, columns)
            return
        for first in range(start, stop, BATCH_ROWS):  # a batch without columns has no number of rows
            yield pa.record_batch({"": pa.nulls(min(BATCH_ROWS, stop - first))})

    def _extra(self, name: str, rows: range, batch: pa.RecordBatch) -> pa.Array:
        if name == "input_row":
            return pa.array(np.arange(rows.start, rows.stop, dtype=np.int64))
        if name == "input_file":
            ends = [*accumulate(table.num_rows for table in self._source.tables)]
            return self._files.take(pa.array(np.searchsorted(ends, rows, side="right")))
        return pa.array(self._prompts(rows, batch), pa.string())

    def _prompts(self, rows: range, batch: pa.RecordBatch) -> list[str | None]:
        """Returns the prompt of each row, if it is text, or its context."""
        names = [*self._read, *([READ_ERROR] if READ_ERROR in batch.schema.names else [])]
        keys = [RowKey(Unit(0, rows.start, rows.stop), row) for row in rows]
        prompts = []
        for row in self._parser.rows(batch.select(names), keys):
            prompt = row.context if isinstance(row, ScoreRow) else row.prompt
            prompts.append(prompt if isinstance(prompt, str) and not isinstance(row, ErrorRow) else None)
        return prompts
