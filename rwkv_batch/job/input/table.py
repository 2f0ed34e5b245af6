"""The table: the form in which every input format offers a file's rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import pyarrow as pa

from ...errors import RowError
from .files import InputFile
from .json_kinds import Expected

BATCH_ROWS = 512
BATCH_BYTES = 16 << 20
"""What the rows of a batch hold, at most, unless it is a single row."""


class Rows(NamedTuple):
    """Consecutive rows, at most `BATCH_ROWS`. Most formats also give at most `BATCH_BYTES`.

    Attributes:
        batch: their columns.
        errors: number of a row in the batch → why the row could not be read. Cells that could not be read are null.
    """

    batch: pa.RecordBatch
    errors: Mapping[int, RowError]

    def slice(self, start: int, stop: int) -> Rows:
        """Returns the rows from `start` to before `stop`."""
        errors = {row - start: error for row, error in self.errors.items() if start <= row < stop}
        return Rows(self.batch.slice(start, stop - start), errors)

    def parts(self) -> Iterator[Rows]:
        """Yields the rows in parts of at most `BATCH_BYTES`, or of one row."""
        if self.batch.num_rows > 1 and self.batch.nbytes > BATCH_BYTES:
            middle = self.batch.num_rows // 2
            yield from self.slice(0, middle).parts()
            yield from self.slice(middle, self.batch.num_rows).parts()
        else:
            yield self

    def take(self, indices: Sequence[int]) -> Rows:
        """Returns some of the rows."""
        errors = {new: self.errors[old] for new, old in enumerate(indices) if old in self.errors}
        return Rows(self.batch.take(pa.array(indices, pa.int64())), errors)


def batch_of(columns: Mapping[str, pa.Array], num_rows: int) -> pa.RecordBatch:
    """Returns a batch of the columns, also where there are none."""
    if columns:
        return pa.RecordBatch.from_arrays([*columns.values()], names=[*columns])
    return pa.RecordBatch.from_struct_array(pa.array([{}] * num_rows, pa.struct([])))


def no_columns(start: int, stop: int) -> Iterator[Rows]:
    """Yields the rows from `start` to before `stop` with no column. Nothing is read."""
    for first in range(start, stop, BATCH_ROWS):
        yield Rows(batch_of({}, min(BATCH_ROWS, stop - first)), {})


class Table(ABC):
    """One opened input file. A data source is a subclass, and an entry of `FORMATS` in formats.py.

    Args:
        file: the file, of which `schema` and `num_rows` are found at once.
        expected: for formats whose files have no schema: the kinds of some columns' values. A value of another kind
            makes its row a bad row.

    Attributes:
        extensions: ends of file names, in lower case with the dot, by which a folder's files of this format are found.
        has_prompts_of_several_kinds: each row has its prompt in one of the columns prompt, messages and
            prompt_token_ids.
        json_text: names of columns that hold JSON text in place of values without a common type.
        schema: the columns of the file.
        num_rows: the rows of the file.

    Raises:
        ConfigurationError: the file is not what its name says.
        OSError, pa.ArrowException: the file is not of this format.
    """

    extensions: ClassVar[tuple[str, ...]]
    has_prompts_of_several_kinds: ClassVar[bool] = False
    json_text: Collection[str] = frozenset()
    schema: pa.Schema
    num_rows: int

    @abstractmethod
    def __init__(self, file: InputFile, expected: Mapping[str, Expected]) -> None: ...

    @staticmethod
    @abstractmethod
    def recognizes(head: bytes) -> bool:
        """Whether a file that begins with these bytes, at most 1 MiB, is of this format."""

    @classmethod
    def settle(cls, tables: Sequence[Table]) -> Sequence[Table]:
        """Returns the files of one input; with common types, where files of the format have no schema."""
        return tables

    @abstractmethod
    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Rows]:
        """Rows from `start` to before `stop`.

        Args:
            columns: wanted columns. A batch has those of them that the file has.
        """
