"""The files of an event log: their names and their order, the next file when one is full, and what old files keep."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ...object_stores.urls import is_url
from ..output.storage import Storage

FILE_BYTES = 16 << 20
"""A line that would make a file larger begins the next one."""
WHOLE_FILES = 8
"""So many of the newest files have all events; in older ones, commits are added up."""
MOST_FILES = 64
"""Older files are removed."""

COMMIT = b'"event": "commit"'
HEAD = 200
"""Bytes at the beginning of a line in which the name of its event is."""
_NAME = re.compile(r"(log(?:-\d+-of-\d+)?)(?:\.(\d{6}))?\.jsonl")


def log_names(names: Iterable[str]) -> list[str]:
    """Returns those names that are files of event logs: the files of a log one after another, the oldest first.

    On a disk these are log.jsonl, log.000001.jsonl and so on, in an object store log.RUN.000000.jsonl and so on.
    """
    return sorted((name for name in names if name.startswith("log") and name.endswith(".jsonl")), key=_order)


def _order(name: str) -> tuple[str, int, str]:
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2] or 0), name) if match else (name.partition(".")[0], 0, name)


class LogFiles:
    """Appends lines to the newest file of a log, and begins the next one when that is full.

    A file keeps its name, and is never copied. So a process that is killed at any moment leaves each line in one file,
    and two processes that write the same log do not hinder each other.

    In an object store, lines become numbered objects as `Storage.appender` makes them.

    Args:
        storage: reads and writes.
        path: the first file.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._folder, name = os.path.split(path)
        self._stem = name.removesuffix(".jsonl")
        self._append = storage.appender(path)
        self._is_remote = is_url(path)
        self._number: int | None = None  # of the newest file; None until a line is written
        self._bytes = 0
        self._is_torn = False  # the newest file ends within a line: a process was killed while it wrote

    def append(self, line: str, *, is_urgent: bool) -> None:
        """Appends a line, which has its end. One that is not urgent may be written with a later one.

        Raises:
            OSError: a file cannot be read or written.
        """
        if self._is_remote:
            self._append(line, is_urgent=is_urgent)
            return
        size = len(line.encode(errors="backslashreplace"))
        if self._number is None:
            self._begin(max(self._numbers(), default=0))
        assert self._number is not None
        if self._bytes and self._bytes + size > FILE_BYTES:
            self._begin(self._number + 1)
            with suppress(OSError):  # it is tried again when this file is full
                self._reduce()
        self._append("\n" * self._is_torn + line, is_urgent=is_urgent)
        self._bytes += size + self._is_torn
        self._is_torn = False

    def _begin(self, number: int) -> None:
        """Goes on with the file of this number, which may be there."""
        self._append = self._storage.appender(self._path(number))
        self._bytes, self._is_torn = 0, False
        with suppress(FileNotFoundError), self._storage.open(self._path(number)) as file:
            self._bytes = file.seek(0, os.SEEK_END)
            if self._bytes:
                file.seek(-1, os.SEEK_END)
                self._is_torn = file.read(1) != b"\n"
        self._number = number

    def _reduce(self) -> None:
        """Adds up the commits in old files, and removes the oldest ones."""
        older = self._numbers()[: -WHOLE_FILES + 1]  # the newest file has no line yet
        for number in older[: -(MOST_FILES - WHOLE_FILES)]:
            self._storage.remove(self._path(number))
        for number in older[-(MOST_FILES - WHOLE_FILES) :]:
            with self._storage.open(self._path(number)) as file:
                data = file.read()
            if (reduced := with_sums(data)) != data:
                self._storage.atomic_write(self._path(number), reduced)

    def _numbers(self) -> list[int]:
        """The numbers of the files that are there."""
        matches = map(_NAME.fullmatch, self._storage.list(self._folder))
        return sorted(int(match[2] or 0) for match in matches if match and match[1] == self._stem)

    def _path(self, number: int) -> str:
        infix = f".{number:06d}" if number else ""
        return os.path.join(self._folder, f"{self._stem}{infix}.jsonl")


def with_sums(data: bytes) -> bytes:
    """Returns the lines of a log file with one event "commit" for each run and worker, in place of the last of them.

    It has the sums of "rows" and "seconds", and in "commits" their number. All other lines stay as they are.
    """
    lines: dict[Any, bytes] = {}
    sums: dict[Any, dict[str, Any]] = {}
    for index, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        event = _commit(line)
        if event is None:
            lines[index] = line
            continue
        key = event["run"], event["shard"], event.get("worker")
        if key in sums:
            before = sums[key]
            event |= {name: before[name] + event[name] for name in ("rows", "seconds")}
            event["commits"] = before.get("commits", 1) + event.get("commits", 1)
            del lines[key]
            line = json.dumps(event, ensure_ascii=False).encode(errors="backslashreplace")
        sums[key], lines[key] = event, line
    return b"".join(line + b"\n" for line in lines.values())


def _commit(line: bytes) -> dict[str, Any] | None:
    """Returns the event "commit" of a line; None where it has another one, or is damaged."""
    if COMMIT not in line[:HEAD]:
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_sound = isinstance(event, dict) and event.keys() >= {"run", "shard", "rows", "seconds"}
    return event if is_sound and all(isinstance(event[name], int | float) for name in ("rows", "seconds")) else None
