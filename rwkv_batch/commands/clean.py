"""The command `clean`: removes what a job no longer needs from its state folder. Parts stay, whatever happens."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from ..errors import ConfigurationError
from ..job.claim import read_claims
from ..job.folders import Folders
from ..job.output.commit import UNREADABLE, part_name
from ..job.output.parts import footer
from ..job.output.storage import Storage
from ..job.report.claims import ClaimWatch
from ..job.report.report import find_job
from ..job.state import read_job

TEMPORARY = "temporary files"


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
    """Raises ConfigurationError where a process runs the job, or a shard of it: it has a claim, and is alive."""
    watch = ClaimWatch()
    for shard, claim in read_claims(storage, folders.state):
        if watch.state(claim, time.time()) == "alive":
            raise ConfigurationError(
                f"{folders.output}: {claim} runs shard {shard} of this job; stop it, or wait until it ends"
            )
