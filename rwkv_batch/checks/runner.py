"""Runs all cases of a machine, each in its own process."""

from __future__ import annotations

import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import torch

from ..errors import ConfigurationError
from ..process import POLL_SECONDS, Ended, Process
from ..threads import usable_cores
from .cases import DEMO, cases
from .result import CRASHED, FAILED, TIMEOUT, CheckResult
from .target import Target

BACKENDS = {"cuda": ("auto", "triton", "cuda", "reference"), "cpu": ("auto", "cpu")}
"""Type of a device → backends that are checked there. On a CPU the definitions are the oracle."""
ALL_BACKENDS = (*BACKENDS["cuda"], "cpu")
AT_ONCE = 16
BYTES_OF_PROCESS = 2 << 30
"""Memory of a GPU that a case may take, including the driver's."""
DEMO_TIMES = 3
"""Time limit of a case with the whole model, in time limits of one op: all kernels of a model are compiled."""
BUILD = "build"
"""In place of an op's name: the compilation before the cases."""
BUILD_SECONDS = 600.0
"""Time limit for the build of the native kernels."""
TRITON_SECONDS = 240.0
"""Time limit for the compilation of Triton's kernels for one device."""
_WORKER = "rwkv_batch.checks.worker"
ASK_SECONDS = 120.0
"""Time limit, in seconds, of the process that reads the GPUs' free memory."""


@dataclass(frozen=True)
class Job:
    """A case on a target.

    Args:
        name, op, backend, device: as in `CheckResult`.
        time_limit: seconds.
        function: "package.module:function", which the process calls with name, backend, device and `more`.
        more: further arguments by name, plain JSON.
    """

    name: str
    op: str
    backend: str
    device: str
    time_limit: float
    function: str = f"{_WORKER}:check"
    more: Mapping[str, Any] = field(default_factory=dict)


def run_checks(
    devices: Sequence[torch.device] | None = None,
    backends: Sequence[str] | None = None,
    *,
    ops: Sequence[str] | None = None,
    time_limit: float = 40.0,
    at_once: int | None = None,
    report: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Checks every op on every backend and device against its definition, and the demo model against known tokens.

    Compilations that many cases share come first: the native kernels of a CPU, and Triton's kernels for each GPU.

    Args:
        devices: None takes all CUDA devices and the CPU.
        backends: of "auto", "triton", "cuda", "cpu", "reference"; None takes those that serve a device.
        ops: names of ops, or "demo" for the demo model; None takes all.
        time_limit: seconds of a case; a case with the demo model has three times as many.
        at_once: cases that run at the same time; None takes as many as cores and free GPU memory allow, up to 16.
        report: called with each result as soon as it is known.

    Returns:
        One result for each case, in the order in which they were started.

    Raises:
        ConfigurationError: a backend or an op is unknown, or `at_once` is below 1.
    """
    if at_once is not None and at_once < 1:
        raise ConfigurationError(f"cases at once: got {at_once}, expected at least 1")
    for backend in backends or ():
        if backend not in ALL_BACKENDS:
            raise ConfigurationError(f"backends: got {backend!r}, expected some of {', '.join(ALL_BACKENDS)}")
    found, say = all_devices() if devices is None else list(devices), report or (lambda _: None)
    targets = [Target(backend, device) for device in found for backend in backends or BACKENDS.get(device.type, ())]
    there = [(target, case) for target in targets for case in cases(target)]
    known = dict.fromkeys(case.op for _, case in there)
    for op in ops or ():
        if op not in known:
            raise ConfigurationError(f"ops: got {op!r}, expected some of {', '.join(known) or 'none'}")
    jobs = [
        Job(case.name, case.op, target.backend, str(target.device), time_limit * (DEMO_TIMES if case.op == DEMO else 1))
        for target, case in there
        if ops is None or case.op in ops
    ]
    jobs.sort(key=lambda job: job.op != DEMO)  # the longest first
    return run_jobs(builds(jobs), 1, say) + run_jobs(jobs, at_once or most_at_once(found), say)


def builds(jobs: Iterable[Job]) -> Iterator[Job]:
    """The compilations that many cases share: each case that waits for one would count it as its own time."""
    uses = [("triton" if job.backend == "auto" and job.device != "cpu" else job.backend, job) for job in jobs]
    if any(job.device == "cpu" and job.backend in BACKENDS["cpu"] for _, job in uses):
        yield Job("build of native kernels", BUILD, "cpu", "cpu", BUILD_SECONDS, f"{_WORKER}:build_native")
    for device in dict.fromkeys(job.device for _, job in uses if job.device != "cpu"):
        ops = list(dict.fromkeys(job.op for backend, job in uses if (backend, job.device) == ("triton", device)))
        if ops:
            function = f"{_WORKER}:compile_triton"
            yield Job("build of Triton's kernels", BUILD, "triton", device, TRITON_SECONDS, function, {"ops": ops})


def all_devices() -> list[torch.device]:
    """The CUDA devices, and the CPU."""
    return [*(torch.device("cuda", index) for index in range(torch.cuda.device_count())), torch.device("cpu")]


def most_at_once(devices: Iterable[torch.device]) -> int:
    """Processes at once: as many as there are cores, and as fit into every GPU's free memory, up to 16."""
    gpus = [str(one) for one in devices if one.type == "cuda"]
    memory: list[int] = []
    if gpus:
        with tempfile.TemporaryDirectory(prefix="rwkv_batch-checks-") as folder:
            asked = Process(f"{__name__}:free_memory", {"devices": gpus}, ASK_SECONDS, Path(folder))
            memory = asked.wait().answer or []  # where a GPU does not answer, its cases report why
    return max(1, min(AT_ONCE, usable_cores(), *(size // BYTES_OF_PROCESS for size in memory)))


def free_memory(devices: Sequence[str]) -> list[int]:
    """Free bytes of GPUs. The call makes a CUDA context on each, which stays as long as the process."""
    return [torch.cuda.mem_get_info(device)[0] for device in devices]


def run_jobs(jobs: Iterable[Job], at_once: int, report: Callable[[CheckResult], None]) -> list[CheckResult]:
    """Run jobs, `at_once` at a time; results are in the order of the jobs."""
    waiting, results = deque(enumerate(jobs)), dict[int, CheckResult]()
    running: dict[int, tuple[Job, Process]] = {}
    with tempfile.TemporaryDirectory(prefix="rwkv_batch-checks-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    number, job = waiting.popleft()
                    arguments = {"name": job.name, "backend": job.backend, "device": job.device, **job.more}
                    own = Path(folder, str(number))
                    own.mkdir()
                    running[number] = job, Process(job.function, arguments, job.time_limit, own)
                sleep(POLL_SECONDS)
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
    """The result of a job whose process has ended; made from the exit code where the process gave none."""
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
