"""The logs and the error rows of a job, read again and again while the job runs: what was read is not read again."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from ...object_stores.urls import is_url
from ..output.commit import UNREADABLE
from ..output.parts import footer
from ..output.storage import Storage
from .events import COMMON
from .log_files import COMMIT, HEAD, log_names

PROGRESS = b'"event": "progress"'
READERS = 16
"""Parts that are read at a time."""

Event = dict[str, Any]


class LogFollower:
    """The events of all runs of a job. Of commits, of which a long job has millions, it has those after the last
    progress event.

    Args:
        storage: reads.
        state: the state folder.
    """

    def __init__(self, storage: Storage, state: str) -> None:
        self._storage = storage
        self._state = state
        self._read: dict[str, int] = {}  # file → bytes that were read
        self._events: dict[str, list[Event]] = {}  # file → its events

    def runs(self, names: Sequence[str]) -> dict[str, list[Event]]:
        """Reads what is new. Returns the random number of each run → its events in their order. Damaged lines are
        skipped; a last line without its end is left for the next time.

        Args:
            names: what the state folder holds.
        """
        logs = log_names(names)
        for name in logs:
            self._take_in(name)
        runs: dict[str, list[Event]] = {}
        for name in log_names(self._events):
            for event in self._events[name]:
                runs.setdefault(event["run"], []).append(event)
        return runs

    def _take_in(self, name: str) -> None:
        known = self._read.get(name, 0)
        if known and is_url(self._state):
            return  # an object with lines is never written again
        try:
            with self._storage.open(os.path.join(self._state, name)) as file:
                if file.seek(0, os.SEEK_END) < known:  # another file
                    known = 0
                file.seek(known)
                data = file.read()
        except FileNotFoundError:
            return
        lines, newline, _ = data.rpartition(b"\n")
        events = self._events.setdefault(name, [])
        if not known:
            events.clear()
        events.extend(_events(lines.split(b"\n")))
        self._read[name] = known + len(lines) + len(newline)


def _events(lines: Sequence[bytes]) -> Iterator[Event]:
    """Yields the events in lines of a log, without those of commits before the last progress event."""
    last = max((index for index, line in enumerate(lines) if PROGRESS in line[:HEAD]), default=-1)
    for index, line in enumerate(lines):
        if index < last and COMMIT in line[:HEAD]:
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.keys() >= COMMON and _is_sound(event):
            yield event


def _is_sound(event: Mapping[str, Any]) -> bool:
    """Whether an event has the fields of its kind."""
    are_texts = all(isinstance(event[name], str) for name in ("run", "shard", "event"))
    numbers: list[Any] = [event["time"]]
    match event["event"]:
        case "progress" | "worker_progress":
            others = ("phases", "unrecorded", "run", "shard", "event")
            numbers += [value for name, value in event.items() if name not in others and value is not None]
            numbers.append(event.get("seconds"))
        case "failure":
            are_texts = are_texts and all(isinstance(event.get(name), str) for name in ("type", "message"))
        case "commit":
            numbers.append(event.get("rows"))
        case "publish":
            are_texts = are_texts and isinstance(event.get("part"), str)
            numbers.append(event.get("errors"))
    return are_texts and all(isinstance(number, int | float) for number in numbers)


class PartErrors:
    """The error codes of published parts. A part is read once, and again where a run has published it again, or where
    it could not be read.

    Args:
        storage: reads.
        folder: the output folder.
        column: the name of the column error_code in the parts.
    """

    def __init__(self, storage: Storage, folder: str, column: str) -> None:
        self._storage = storage
        self._folder = folder
        self._column = column
        self._known: dict[str, tuple[float, Counter[str] | None]] = {}

    def count(self, names: Sequence[str], published: Mapping[str, Event]) -> tuple[Counter[str], list[str]]:
        """Returns error code → rows, and the parts that cannot be read.

        Args:
            names: the parts.
            published: part → its latest event "publish". A part whose event tells of no error is not read.
        """
        at = {name: published[name]["time"] if name in published else 0.0 for name in names}
        known = {name: when for name, (when, codes) in self._known.items() if codes is not None}
        new = [name for name in names if known.get(name) != at[name]]
        empty = [name for name in new if name in published and not published[name]["errors"]]
        self._known |= {name: (at[name], Counter()) for name in empty}
        to_read = sorted({*new} - {*empty})
        if to_read:
            with ThreadPoolExecutor(READERS, "rwkv_batch-parts") as executor:
                found = executor.map(self._of_part, to_read)
                self._known |= {name: (at[name], codes) for name, codes in zip(to_read, found, strict=True)}
        total: Counter[str] = Counter()
        for name in names:
            total.update(self._known[name][1] or {})
        return total, [name for name in names if self._known[name][1] is None]

    def _of_part(self, name: str) -> Counter[str] | None:
        """Returns the error codes of a part; None where it cannot be read."""
        try:
            with self._storage.open(os.path.join(self._folder, name)) as file:
                parquet = pq.ParquetFile(file)
                if footer(parquet).get("errors") == "0":
                    return Counter()
                codes = parquet.read(columns=[self._column])[self._column]
                counted = codes.drop_null().value_counts().to_pylist()
        except UNREADABLE:
            return None
        return Counter({entry["values"]: entry["counts"] for entry in counted})
