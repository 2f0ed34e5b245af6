"""The event log of a job: one JSON object per line, without any prompt's text. Its first file is log.jsonl."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import pyarrow as pa

from ... import __version__
from ..output.storage import Storage
from .log_files import LogFiles, log_names

logger = logging.getLogger(__name__)

COMMON = {"time", "run", "shard", "event"}
"""Keys of every event."""
FREQUENT = {"progress", "worker_progress", "commit", "publish"}
"""Events that may be written together with a later one."""


class EventLog:
    """Appends events to a log; call it with an event's name and fields. Any thread may call.

    A log that cannot be written warns once, and drops all later events: the job goes on without it.

    Args:
        storage: writes.
        path: the first file of the log.
        common: fields of every event. "run" is a random number where it is left out.
    """

    def __init__(self, storage: Storage, path: str, **common: Any) -> None:
        self._path = path
        self._files = LogFiles(storage, path)
        self._common = {"run": os.urandom(4).hex(), **common}
        self._lock = threading.Lock()
        self._is_broken = False
        self._started = time.time() - time.monotonic()

    def __call__(self, event: str, **fields: Any) -> None:
        now = self._started + time.monotonic()  # goes on evenly, also where the system's clock is set
        entry = {"time": now, **self._common, "event": event, **fields}
        line = json.dumps(entry, ensure_ascii=False, default=str) + "\n"
        with self._lock:
            try:
                if not self._is_broken:
                    self._files.append(line, is_urgent=event not in FREQUENT)
            except OSError as error:
                self._is_broken = True
                logger.warning("%s: no more events are logged: %s", self._path, error)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            details = "".join(traceback.format_exception(kind, error, trace))
            self("failure", type=type(error).__name__, message=str(error), traceback=details)
        elif error is not None:
            self("stopped")


def machine() -> dict[str, Any]:
    """Returns the machine of a run, and the versions that may matter when results are compared."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        **_processor(),
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "rwkv_batch": __version__,
    }


def _processor() -> dict[str, str]:
    """Returns the name of the processor; without it where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return {"cpu": names[0]} if names else {}


def memory() -> dict[str, int]:
    """Returns the largest memory that this process has held, in bytes; without it where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # resource.getrusage counts the parent's memory too
            peaks = [line.split()[1] for line in file if line.startswith("VmHWM:")]
    except OSError:
        peaks = []
    return {"peak_bytes": int(peaks[0]) << 10} if peaks else {}


def read_events(storage: Storage, state_folder: str) -> Iterator[dict[str, Any]]:
    """Yields the events of all runs and shards of a job, those of a run in their order. Damaged lines are skipped."""
    for name in log_names(storage.list(state_folder)):
        with suppress(FileNotFoundError), storage.open(os.path.join(state_folder, name)) as file:
            for line in file:
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict) and event.keys() >= COMMON:
                    yield event
