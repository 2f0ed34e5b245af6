"""The command `clean`: removes what a job no longer needs from its state folder. Parts stay, whatever happens."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from ..errors import ConfigurationError
from ..job.folders import Folders
from ..job.output.commit import UNREADABLE, part_name
from ..job.output.parts import footer
from ..job.output.storage import Storage
from ..job.report.report import find_job
from ..job.state import read_job
from ..object_stores.urls import is_url

ACTIVE_SECONDS = 120.0
"""A run whose last sign of life is younger may still be at work: running jobs write one every few seconds."""
LAST_BYTES = 1 << 20
"""The end of a log that is read."""
TEMPORARY = "temporary files"
SIGNS = re.compile(r"claim.*\.json|metrics.*\.prom|log.*\.jsonl")
"""Files of a state folder that a running job writes all the time."""


@dataclass(frozen=True)
class Leftover:
    """A file that a job no longer needs.

    Args:
        kind: what it is, in words.
        path: of the file.
        bytes: its size.
    """

    kind: str
    path: str
    bytes: int


def find_leftovers(out: str) -> tuple[Folders, Storage, list[Leftover]]:
    """Finds the files that a job no longer needs: segments of units that have a part, damaged files that were set
    aside, and temporary files.

    Args:
        out: the job's output folder, or its state folder.

    Raises:
        ConfigurationError: there is no such job.
    """
    folders = find_job(out)
    storage = folders.open_storage()
    job = read_job(storage, folders.state)
    assert job is not None
    return folders, storage, [*_segments(storage, folders, job), *_files(storage, folders)]


def _segments(storage: Storage, folders: Folders, job: dict[str, Any]) -> Iterator[Leftover]:
    """Yields the segments of published units. Those of error rows that were served again stay: the next run needs
    them."""
    count = job["plan"]["units"]
    published = set(storage.list(folders.output))
    for index in range(count):
        name = part_name(index, count)
        if name not in published:
            continue
        folder = folders.file(f"unit-{index:05d}")
        for segment in storage.list(folder):
            path = os.path.join(folder, segment)
            if segment.endswith(".seg") and not _is_retry(storage, path):
                yield Leftover("segments of finished units", path, _size(storage, path))


def _is_retry(storage: Storage, path: str) -> bool:
    """Whether a segment holds error rows that were served again."""
    try:
        with storage.open(path) as file:
            return "retry" in footer(pq.ParquetFile(file))
    except UNREADABLE:
        return False


def _files(storage: Storage, folders: Folders) -> Iterator[Leftover]:
    for kind, name in (("damaged files that were set aside", "damaged"), (TEMPORARY, "tmp")):
        folder = folders.file(name)
        for found in storage.list(folder):
            path = os.path.join(folder, found)
            yield Leftover(kind, path, _size(storage, path))


def remove(storage: Storage, leftovers: Sequence[Leftover]) -> None:
    """Removes files. A temporary file of a process that is alive stays."""
    storage.sweep()
    for leftover in leftovers:
        if leftover.kind != TEMPORARY:
            storage.remove(leftover.path)


def describe(leftovers: Sequence[Leftover]) -> Iterator[str]:
    """Yields a line for each kind of file: how many there are, and how much they hold."""
    for kind in dict.fromkeys(leftover.kind for leftover in leftovers):
        sizes = [leftover.bytes for leftover in leftovers if leftover.kind == kind]
        yield f"{len(sizes):,} {kind}, {sum(sizes):,} bytes"


def _size(storage: Storage, path: str) -> int:
    try:
        with storage.open(path) as file:
            return file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return 0


def check_idle(storage: Storage, folders: Folders) -> None:
    """Raises ConfigurationError where a process seems to run the job: a file that running jobs write all the time has
    changed in the last minutes, and no run has ended since."""
    if is_url(folders.state):
        return  # times of objects are not known here; segments that a running job needs are never removed
    latest = 0.0
    for name in storage.list(folders.state):
        if SIGNS.fullmatch(name):
            latest = max(latest, os.path.getmtime(folders.file(name)))
    age = time.time() - latest
    if age < ACTIVE_SECONDS and not _has_ended(storage, folders):
        raise ConfigurationError(
            f"{folders.output}: a process seems to run this job: its last sign of life is {age:.0f} s old. Stop it, "
            f"or wait {ACTIVE_SECONDS:.0f} s"
        )


def _has_ended(storage: Storage, folders: Folders) -> bool:
    """Whether the last event of each log is the end of a run."""
    logs = [name for name in storage.list(folders.state) if re.fullmatch(r"log.*\.jsonl", name)]
    for name in logs:
        with storage.open(folders.file(name)) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().splitlines()
        try:
            event = json.loads(lines[-1])["event"] if lines else "end"
        except (ValueError, KeyError, TypeError):
            return False
        if event not in ("end", "failure", "stopped"):
            return False
    return True
