"""Ranges of rows of a source that is read from its beginning, in linear time where one follows the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

Columns = tuple[str, ...]


class Continued:
    """Reads ranges of rows. A range that begins at or behind the end of the last one goes on from there.

    Args:
        begin: returns an iterator over all rows of some columns from the first row on, in pieces that can be sliced.
        num_rows: the rows of the source.
    """

    def __init__(self, begin: Callable[[Columns], Iterator[Any]], num_rows: int) -> None:
        self._begin = begin
        self._num_rows = num_rows
        self._paused: dict[Columns, tuple[int, list[Any], Iterator[Any]]] = {}
        """Columns → a row's number, and what comes from this row on: pieces that were read, and those that were not."""

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Any]:
        """Yields the rows from `start` to before `stop`, in pieces."""
        wanted = tuple(columns)
        paused = self._paused.pop(wanted, None)  # of several threads one goes on, and the others begin anew
        row, ahead, pieces = paused if paused and paused[0] <= start else (0, [], self._begin(wanted))
        for piece in chain(ahead, pieces):
            first, last = max(start - row, 0), min(stop - row, len(piece))
            if first < last:
                yield piece[first:last]
            row += len(piece)
            if row >= stop:
                if stop < self._num_rows:
                    self._paused[wanted] = (stop, [piece[last:]], pieces)
                return
