"""All cases of a machine, each in a process of its own."""

from __future__ import annotations

import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import torch

from ..errors import ConfigurationError
from ..threads import usable_cores
from .cases import DEMO, cases
from .process import Ended, Process
from .result import CRASHED, FAILED, TIMEOUT, CheckResult
from .target import Target

BACKENDS = {"cuda": ("auto", "triton", "cuda", "reference"), "cpu": ("auto", "cpu")}
"""Type of a device → backends that are checked there. On a CPU the definitions are what is compared with."""
AT_ONCE = 16
BYTES_OF_PROCESS = 2 << 30
"""Memory of a GPU that a case may take, with the driver's own."""
DEMO_TIMES = 3
"""Time limit of a case with the whole model, in those of a case with one op: all kernels of a model are compiled."""
BUILD_SECONDS = 600.0
"""Time limit for the build of the native kernels."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """A case on a target.

    Args:
        name, op, backend, device: as in `CheckResult`.
        time_limit: seconds.
        function: "package.module:function", which the process calls with name, backend and device.
    """

    name: str
    op: str
    backend: str
    device: str
    time_limit: float
    function: str = "rwkv_batch.checks.worker:check"


def run_checks(
    devices: Sequence[torch.device] | None = None,
    backends: Sequence[str] | None = None,
    *,
    ops: Sequence[str] | None = None,
    time_limit: float = 40.0,
    at_once: int | None = None,
    report: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Check every op on every backend and device against its definition, and the demo model against known tokens.

    The native kernels of a CPU are built first, if they are to be checked.

    Args:
        devices: None takes all CUDA devices and the CPU.
        backends: of "auto", "triton", "cuda", "cpu", "reference"; None takes those that serve a device.
        ops: names of ops, or "demo" for the demo model; None takes all.
        time_limit: seconds of a case; a case with the demo model has three times as many.
        at_once: cases that run at the same time; None takes as many as there are cores and GPU memory for, up to 16.
        report: called with each result when it is there.

    Returns:
        One result for each case, in the order in which they were started.

    Raises:
        ConfigurationError: no backend of these names has ops of these names.
    """
    found, say = all_devices() if devices is None else list(devices), report or (lambda _: None)
    targets = [Target(backend, device) for device in found for backend in backends or BACKENDS.get(device.type, ())]
    jobs = [
        Job(case.name, case.op, target.backend, str(target.device), time_limit * (DEMO_TIMES if case.op == DEMO else 1))
        for target in targets
        for case in cases(target)
        if ops is None or case.op in ops
    ]
    if not jobs:
        raise ConfigurationError(
            f"nothing to check: got devices {[str(device) for device in found]}, backends {backends} and ops {ops}; "
            f"expected backends among {', '.join(BACKENDS['cuda'])}, cpu, and ops such as wkv7, linear and {DEMO}"
        )
    jobs.sort(key=lambda job: job.op != DEMO)  # they take longest
    built = []
    if any(job.device == "cpu" and job.backend in BACKENDS["cpu"] for job in jobs):
        function = "rwkv_batch.checks.worker:build_native"
        built = run_jobs([Job("build of native kernels", "build", "cpu", "cpu", BUILD_SECONDS, function)], 1, say)
    return built + run_jobs(jobs, at_once or most_at_once(found), say)


def all_devices() -> list[torch.device]:
    """The CUDA devices, and the CPU."""
    return [*(torch.device("cuda", index) for index in range(torch.cuda.device_count())), torch.device("cpu")]


def most_at_once(devices: Iterable[torch.device]) -> int:
    """As many processes as there are cores, and as fit the smallest GPU's memory, up to 16."""
    gpus = [one for one in devices if one.type == "cuda"] if torch.cuda.is_available() else []
    memory = [torch.cuda.get_device_properties(one).total_memory for one in gpus]
    return max(1, min(AT_ONCE, usable_cores(), *(size // BYTES_OF_PROCESS for size in memory)))


def run_jobs(jobs: Iterable[Job], at_once: int, report: Callable[[CheckResult], None]) -> list[CheckResult]:
    """Run jobs, `at_once` at a time; results are in the order of the jobs."""
    waiting, results = deque(enumerate(jobs)), dict[int, CheckResult]()
    running: dict[int, tuple[Job, Process]] = {}
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-checks-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number, job = waiting.popleft()
                    arguments = {"name": job.name, "backend": job.backend, "device": job.device}
                    own = Path(folder, str(number))
                    own.mkdir()
                    running[number] = job, Process(job.function, arguments, job.time_limit, own)
                sleep(_POLL_SECONDS)
                for number, (job, process) in list(running.items()):
                    if ended := process.ended():
                        del running[number]
                        results[number] = result_of(job, ended)
                        report(results[number])
        finally:
            for _, process in running.values():
                process.send_kill()
            for _, process in running.values():
                process.kill()
    return [results[number] for number in sorted(results)]


def result_of(job: Job, ended: Ended) -> CheckResult:
    """A result, also where the process gave none."""
    lines = [line.strip() for line in ended.log.splitlines() if line.strip()]
    last = f"; {lines[-1]}" if lines else ""
    code = ended.code or 0
    if ended.answer is not None:
        fields = ended.answer
    elif ended.is_late:
        fields = {"status": TIMEOUT, "why": f"ended after {job.time_limit:.0f} s{last}"}
    elif code < 0:
        fields = {"status": CRASHED, "why": f"ended by {signal.Signals(-code).name}{last}"}
    else:
        fields = {"status": FAILED, "why": f"ended with exit code {code}{last}"}
    return CheckResult(job.name, job.op, job.backend, job.device, **fields, seconds=round(ended.seconds, 1))
