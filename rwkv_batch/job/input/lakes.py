"""Folders of Delta, Hudi and Iceberg tables: their logs, and not their listing, say which files are live."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pyarrow import fs

from ...errors import ConfigurationError

_ICEBERG = re.compile(r"v?\d.*\.metadata\.json")


def refuse_lakes(filesystem: Any, base: str, listing: Sequence[str], chosen: Sequence[str]) -> None:
    """Refuses files of a Delta, Hudi or Iceberg table.

    Args:
        base: the folder that was listed.
        listing: paths of all files and folders below it.
        chosen: paths of the files that would be read.

    Raises:
        ConfigurationError: some of these files belong to such a table.
    """
    for kind, root in (*_roots(listing), *_roots_above(filesystem, base)):
        if any(path.startswith(f"{root}/") for path in chosen):
            raise ConfigurationError(
                f"input.path: {root} belongs to {kind} table: its folder also holds files with deleted and replaced "
                "rows; export the table to Parquet files, or list its live files in input.path"
            )


def _roots(listing: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the kind, with its article, and the folder of each table that has its log in the listing."""
    found = {}
    for path in listing:
        pieces = path.split("/")
        for index, piece in enumerate(pieces):
            if piece == "_delta_log":
                found["/".join(pieces[:index])] = "a Delta"
            elif piece.startswith(".hoodie"):
                found["/".join(pieces[:index])] = "a Hudi"
        if pieces[-2:-1] == ["metadata"] and _ICEBERG.fullmatch(pieces[-1]):
            found["/".join(pieces[:-2])] = "an Iceberg"
    return ((kind, root) for root, kind in found.items())


def _roots_above(filesystem: Any, base: str) -> Iterator[tuple[str, str]]:
    """Yields the tables that hold a folder. Folders that cannot be looked into are not known to be tables."""
    pieces = base.rstrip("/").split("/")
    for end in range(1, len(pieces)):
        root = "/".join(pieces[:end])
        try:
            if root:
                logs = filesystem.get_file_info([f"{root}/_delta_log", f"{root}/.hoodie"])
                yield from _roots([info.path for info in logs if info.type == fs.FileType.Directory])
                if pieces[end] == "data":
                    selector = fs.FileSelector(f"{root}/metadata", allow_not_found=True)
                    yield from _roots([info.path for info in filesystem.get_file_info(selector)])
        except (OSError, ValueError):
            continue
