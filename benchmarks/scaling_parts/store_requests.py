"""How many requests a job makes to an object store for each unit, in each phase: counted with moto's S3 server."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from rwkv_batch import run
from rwkv_batch.job.output import commit
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.output.object_storage import ObjectStorage, _ObjectFile
from rwkv_batch.job.report import report
from rwkv_batch.job.shard_run import ShardRun

from ..host_parts import driver
from ..host_parts.device import SimulatedDevice
from ..object_stores import server
from .free_jobs import FreeJob, JobFailed

PHASES: dict[str, tuple[Any, str]] = {
    "survey": (ShardRun, "survey"),
    "take": (JobFiles, "committed_rows"),
    "commit": (JobFiles, "commit"),
    "publish": (JobFiles, "publish"),
    "finish": (ShardRun, "finish"),
}
UNITS = (3, 9)
ROWS_PER_UNIT = 20
PART_BYTES = 3 << 19
"""A part is larger than what is read when an object is opened."""


def measure() -> dict[str, float]:
    """Returns the requests for each unit: what a job of many units makes more than one of few; and what publishing
    makes more for each further segment of a unit."""
    with server() as bucket:
        few, many = (count(f"{bucket}/{units}", units) for units in UNITS)
        segmented = count(f"{bucket}/segments", UNITS[1], flush_seconds=0.0)
    segment = (segmented["publish"] - many["publish"]) / (segmented["commit"] - many["commit"])
    found = {phase: (many[phase] - few[phase]) / (UNITS[1] - UNITS[0]) for phase in PHASES}
    return {
        "survey_requests": found["survey"],
        "finish_requests": found["finish"],
        "take_requests": found["take"],
        "publish_requests": found["publish"] - segment * found["commit"],
        "segment_requests": segment,
    }


def count(output: str, units: int, flush_seconds: float = 30.0) -> Counter[str]:
    """Runs a job with an output in a store, and returns the requests of each phase.

    Args:
        flush_seconds: 30 gives each unit one segment, 0 gives it several.
    """
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rows = units * ROWS_PER_UNIT
        job = FreeJob(
            Path(folder),
            rows,
            2,
            "auto",
            ROWS_PER_UNIT,
            8,
            flush_seconds=flush_seconds,
            output=output,
            payload_bytes=PART_BYTES // ROWS_PER_UNIT,
        )
        job.write()
        stack.enter_context(counting(counts))
        stack.enter_context(driver.free_jobs(SimulatedDevice(0.0), recorded=False))
        if code := run.main([str(Path(folder, "job.yaml"))]):
            raise JobFailed(f"exit code {code}")
    return counts


@contextmanager
def counting(counts: Counter[str]) -> Iterator[None]:
    """Counts the requests of each phase. A phase inside another one counts as itself.

    A request of another thread belongs to the phase in which the thread was given its work, or in which the object was
    opened that it reads.
    """
    running = threading.local()
    call, begin, read_on = ObjectStorage._call, _ObjectFile.__init__, _ObjectFile._up_to
    opened_in: WeakKeyDictionary[_ObjectFile, str] = WeakKeyDictionary()

    def phase() -> str:
        return getattr(running, "phase", "other")

    def counted(storage: Any, *arguments: Any, **options: Any) -> Any:
        counts[phase()] += 1
        return call(storage, *arguments, **options)

    def begun(file: _ObjectFile, *arguments: Any) -> None:
        begin(file, *arguments)
        opened_in[file] = phase()

    def read(file: _ObjectFile, stop: int) -> bytes:
        found: bytes = _in_phase(running, opened_in[file], read_on)(file, stop)
        return found

    class Readers(ThreadPoolExecutor):
        """Threads that work in the phase of the thread that gives them their work."""

        def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
            return super().submit(_in_phase(running, phase(), function), *arguments, **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(ObjectStorage, "_call", counted))
        stack.enter_context(patch.object(_ObjectFile, "__init__", begun))
        stack.enter_context(patch.object(_ObjectFile, "_up_to", read))
        for module in (commit, report):
            stack.enter_context(patch.object(module, "ThreadPoolExecutor", Readers))
        for name, (owner, method) in PHASES.items():
            stack.enter_context(patch.object(owner, method, _in_phase(running, name, getattr(owner, method))))
        yield


def _in_phase(running: threading.local, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        before = getattr(running, "phase", "other")
        running.phase = phase
        try:
            return function(*arguments, **options)
        finally:
            running.phase = before

    return called
