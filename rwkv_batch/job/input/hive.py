"""Hive partitions: folders named `column=value`, whose values are a column of all files below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import pyarrow as pa

NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a folder whose rows have a null in the column."""


def partition_of(folders: Sequence[str]) -> dict[str, str | None]:
    """Returns the partition values of a file below these folders, as text, by column."""
    pairs = (folder.partition("=") for folder in folders)
    return {
        _decoded(name): None if value == NULL else _decoded(value) for name, equals, value in pairs if name and equals
    }


def partition_types(partitions: Sequence[Mapping[str, str | None]]) -> dict[str, pa.DataType]:
    """Returns the type of each partition column: int64 or date32 where all its values are such, else string."""
    values: dict[str, dict[str | None, None]] = {}
    for partition in partitions:
        for name, value in partition.items():
            values.setdefault(name, {})[value] = None
    return {name: _type_of([value for value in found if value is not None]) for name, found in values.items()}


def _type_of(values: list[str]) -> pa.DataType:
    for kind in (pa.int64(), pa.date32()) if values else ():
        try:
            pa.array(values, pa.string()).cast(kind)
        except pa.ArrowInvalid:
            continue
        return kind
    return pa.string()


def _decoded(text: str) -> str:
    """Resolves %20 and the like. Text that is not encoded so stays as it is."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
