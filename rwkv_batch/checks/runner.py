"""All cases of a machine, each in a process of its own."""

from __future__ import annotations

import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import sleep
from typing import NamedTuple

import torch

from ..threads import usable_cores
from .cases import cases
from .process import Ended, Process
from .result import CRASHED, FAILED, TIMEOUT, CheckResult
from .target import Target

BACKENDS = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu",)}
"""Type of a device → backends that are checked there. On a CPU the definitions are what is compared with."""
AT_ONCE = 16
BYTES_OF_PROCESS = 3 << 29
"""Memory of a GPU that a case may take, with the driver's own: 1.5 GiB."""
_POLL_SECONDS = 0.02


class Job(NamedTuple):
    """A case on a target."""

    name: str
    op: str
    backend: str
    device: str


def run_checks(
    devices: Sequence[torch.device] | None = None,
    backends: Sequence[str] | None = None,
    *,
    ops: Sequence[str] | None = None,
    time_limit: float = 40.0,
    at_once: int | None = None,
    report: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Check every op on every backend and device against its definition.

    Args:
        devices: None takes all CUDA devices and the CPU.
        backends: of "triton", "cuda", "cpu", "reference"; None takes those that serve a device.
        ops: names of ops; None takes all.
        time_limit: seconds of a case.
        at_once: cases that run at the same time; None takes as many as there are cores and GPU memory for, up to 16.
        report: called with each result when it is there.

    Returns:
        One result for each case, in the order in which they were started.
    """
    found = all_devices() if devices is None else list(devices)
    targets = [Target(backend, device) for device in found for backend in backends or BACKENDS.get(device.type, ())]
    jobs = [
        Job(case.name, case.op, target.backend, str(target.device))
        for target in targets
        for case in cases(target)
        if ops is None or case.op in ops
    ]
    return run_jobs(jobs, time_limit, at_once or most_at_once(found), report or (lambda _: None))


def all_devices() -> list[torch.device]:
    """The CUDA devices, and the CPU."""
    return [*(torch.device("cuda", index) for index in range(torch.cuda.device_count())), torch.device("cpu")]


def most_at_once(devices: Iterable[torch.device]) -> int:
    """As many processes as there are cores, and as fit the smallest GPU's memory, up to 16."""
    memory = [torch.cuda.get_device_properties(one).total_memory for one in devices if one.type == "cuda"]
    return max(1, min(AT_ONCE, usable_cores(), *(size // BYTES_OF_PROCESS for size in memory)))


def run_jobs(
    jobs: Iterable[Job],
    time_limit: float,
    at_once: int,
    report: Callable[[CheckResult], None],
    function: str = "rwkv_batch.checks.worker:check",
) -> list[CheckResult]:
    """Run jobs, `at_once` at a time; `function` is what each process calls."""
    waiting, running, results = deque(enumerate(jobs)), dict[int, tuple[Job, Process]](), dict[int, CheckResult]()
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-checks-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number, job = waiting.popleft()
                    arguments = {"name": job.name, "backend": job.backend, "device": job.device}
                    own = Path(folder, str(number))
                    own.mkdir()
                    running[number] = job, Process(function, arguments, time_limit, own)
                sleep(_POLL_SECONDS)
                for number, (job, process) in list(running.items()):
                    if ended := process.ended():
                        del running[number]
                        results[number] = result_of(job, ended, time_limit)
                        report(results[number])
        finally:
            for _, process in running.values():
                process.kill()
    return [results[number] for number in sorted(results)]


def result_of(job: Job, ended: Ended, time_limit: float) -> CheckResult:
    """A result, also where the process gave none."""
    seconds = round(ended.seconds, 1)
    lines = [line.strip() for line in ended.log.splitlines() if line.strip()]
    last = f"; {lines[-1][:300]}" if lines else ""
    if ended.answer is not None:
        return CheckResult(**job._asdict(), **ended.answer, seconds=seconds)
    if ended.is_late:
        return CheckResult(
            **job._asdict(), status=TIMEOUT, why=f"ended after {time_limit:.0f} s{last}", seconds=seconds
        )
    code = ended.code or 0
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    status = CRASHED if code < 0 else FAILED
    return CheckResult(**job._asdict(), status=status, why=f"{how}{last}", seconds=seconds)
