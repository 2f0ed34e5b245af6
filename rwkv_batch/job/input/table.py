"""The table: the form in which every input format offers a file's rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from .files import InputFile
from .json_kinds import Expected

BATCH_ROWS = 512

READ_ERROR = "__read_error__"
"""A column that a table may add to its batches: "code: sentence" where a row could not be read, else null."""


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
        schema: the columns of the file.
        num_rows: the rows of the file.

    Raises:
        ConfigurationError: the file is not what its name says.
        OSError, pa.ArrowException: the file is not of this format.
    """

    extensions: ClassVar[tuple[str, ...]]
    has_prompts_of_several_kinds: ClassVar[bool] = False
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
    def read(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows from `start` to before `stop`, in batches of at most `BATCH_ROWS` rows.

        Args:
            columns: wanted columns. A batch has those of them that the file has, and perhaps READ_ERROR.
        """
