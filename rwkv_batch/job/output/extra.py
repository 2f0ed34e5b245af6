"""The columns of output.extra: the prompt as the model read it, the row's number, and its file.

They are made from the input when a part is written, as the columns are that parts repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from ...rows import ErrorRow, ScoreRow
from ..input.reader import Input, Span
from ..input.rows import RowKey, RowParser
from ..input.table import Rows, batch_of, no_columns
from ..plan import Unit

TYPES = {"prompt": pa.string(), "input_row": pa.int64(), "input_file": pa.string()}
"""Extra column → its type."""


class InputWithExtra:
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

    def spans(self, start: int, stop: int) -> Iterable[Span]:
        """The files that hold the rows from `start` to before `stop`, each with those of its rows."""
        return self._source.spans(start, stop)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        """Yields the rows from `start` to before `stop`, with exactly `columns`."""
        extra = {name: own for own, name in self._names.items() if name in columns}
        needed = dict.fromkeys(name for name in columns if name not in extra)
        needed |= dict.fromkeys(self._read if "prompt" in extra.values() else ())
        for found in self._source.read(start, stop, list(needed)) if needed else no_columns(start, stop):
            numbers = range(start, start + found.batch.num_rows)
            start = numbers.stop
            arrays = {
                name: self._extra(extra[name], numbers, found) if name in extra else found.batch[name]
                for name in columns
            }
            yield Rows(batch_of(arrays, len(numbers)), found.errors)

    def _extra(self, name: str, numbers: range, rows: Rows) -> pa.Array:
        if name == "input_row":
            return pa.array(np.arange(numbers.start, numbers.stop, dtype=np.int64))
        if name == "input_file":
            ends = [*accumulate(table.num_rows for table in self._source.tables)]
            return self._files.take(pa.array(np.searchsorted(ends, numbers, side="right")))
        return pa.array(self._prompts(numbers, rows), pa.string())

    def _prompts(self, numbers: range, rows: Rows) -> list[str | None]:
        """Returns the prompt of each row, if it is text, or its context."""
        keys = [RowKey(Unit(0, numbers.start, numbers.stop), row) for row in numbers]
        prompts = []
        for row in self._parser.rows(Rows(rows.batch.select(list(self._read)), rows.errors), keys):
            prompt = row.context if isinstance(row, ScoreRow) else row.prompt
            prompts.append(prompt if isinstance(prompt, str) and not isinstance(row, ErrorRow) else None)
        return prompts
