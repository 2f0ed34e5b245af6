"""Records of published parts: size and checksum of each, so that damage on the disk is noticed later."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pyarrow as pa

from ...checksum import sha256_of
from .storage import Storage


class PartRecords:
    """The records of a job's parts, a JSON file for each.

    A record is written before its part, and lists the part before as well: a kill between the two writes leaves either
    part as a valid one. A part that an earlier version of this package has published has no record.

    Args:
        storage: reads, and writes atomically.
        folder: holds the records.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def add(self, part: str, data: pa.Buffer) -> None:
        """Records a part that is about to be written.

        Args:
            part: its path.
            data: its bytes.
        """
        record = {"bytes": data.size, "sha256": hashlib.sha256(data).hexdigest()}
        known = self._read(part)
        if record not in known:
            content = json.dumps([*known, record]).encode()
            self._storage.atomic_write(self._path(part), content)

    def fault(self, part: str, size: int, file: Any) -> str | None:
        """Returns why a part is not the one that was published; None where nothing is wrong.

        Args:
            part: its path.
            size: its size in bytes.
            file: the open part, where its content is compared too; else None.
        """
        known = self._read(part)
        same_size = [record for record in known if record["bytes"] == size]
        if known and not same_size:
            return f"it has {size:,} bytes, it had {known[-1]['bytes']:,} when it was published"
        if known and file is not None:
            file.seek(0)
            if sha256_of(file) not in {record["sha256"] for record in same_size}:
                return "its checksum is not the one with which it was published"
        return None

    def _read(self, part: str) -> list[dict[str, Any]]:
        """Returns the records of a part. A record that cannot be read counts as none."""
        try:
            with self._storage.open(self._path(part)) as file:
                records = json.load(file)
        except (FileNotFoundError, ValueError):
            return []
        if not isinstance(records, list):
            return []
        return [record for record in records if isinstance(record, dict) and record.keys() >= {"bytes", "sha256"}]

    def _path(self, part: str) -> str:
        return os.path.join(self._folder, f"{os.path.basename(part)}.json")
