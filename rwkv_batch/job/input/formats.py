"""The registry of input formats. A new format is a module with a `Table`, and one entry here."""

from __future__ import annotations

from ...errors import ConfigurationError, one_of
from .arrow_file import ArrowTable
from .compression import head_of
from .csv_file import CsvTable, TsvTable
from .files import InputFile
from .jsonl import JsonlTable
from .openai_batch import OpenAIBatchTable
from .parquet import ParquetTable
from .table import Table

FORMATS: dict[str, type[Table]] = {
    "parquet": ParquetTable,
    "arrow": ArrowTable,
    "openai-batch": OpenAIBatchTable,
    "jsonl": JsonlTable,
    "csv": CsvTable,
    "tsv": TsvTable,
}
"""Name in `input.format` → its table. Of formats that share an extension, the more special one comes first."""

EXTENSIONS = frozenset(extension for table in FORMATS.values() for extension in table.extensions)
"""Ends of the names of a folder's files that are read."""


def format_of(file: InputFile) -> str | None:
    """Returns the name of a file's format, by its extension, and by its first bytes where that is not enough.

    None is for a file without content that would be right in several formats.

    Raises:
        ConfigurationError: neither tells.
    """
    named = [name for name, table in FORMATS.items() if file.extension in table.extensions]
    if len(named) == 1:
        return named[0]
    try:
        head = head_of(file, 1 << 20)
    except OSError as error:
        raise ConfigurationError(f"input.path: {file.name}: not readable: {error}") from error
    if named and not head.strip():
        return None
    for name in named or FORMATS:
        if FORMATS[name].recognizes(head):
            return name
    if named:
        return named[-1]
    raise ConfigurationError(
        f"input.path: {file.name}: unknown format, expected {one_of(list(FORMATS))} (set input.format)"
    )
