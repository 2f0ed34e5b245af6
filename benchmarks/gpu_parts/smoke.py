"""The part `smoke`: every op of every GPU backend on small inputs, each case in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from rwkv_batch.checks import CheckResult, format_table
from rwkv_batch.checks.cases import DEMO, Case, cases
from rwkv_batch.checks.runner import AT_ONCE, Job, builds, run_jobs
from rwkv_batch.checks.target import Target
from rwkv_batch.threads import usable_cores

from .context import Context

CASE_SECONDS = 60.0
"""Time limit of a case, in case a kernel hangs."""
BUILD_SECONDS = 40.0
"""Time limit of the process that compiles Triton's kernels before the cases. The cases compile the others."""
KERNELS = ("triton", "cuda")
FIRST = ("wkv7", "sample", "linear", "shift_lerp", "low_rank")
"""The ops of every step of the published models. They run before the other ops of a backend."""
REHEARSED = "log_normalizer"


class OutOfTime(Exception):
    """The part's time is over: no further result is awaited."""


def run(context: Context) -> list[str]:
    """Runs the part. A point has the fields of `CheckResult`."""
    record = context.record
    backends = ("reference",) if context.is_rehearsal else KERNELS
    waiting = {f"{job.name} {job.backend}": job for job in jobs(context, backends)}
    waiting = {name: job for name, job in waiting.items() if name not in record.points}

    def keep(result: CheckResult) -> None:
        name = f"{result.name} {result.backend}"
        record.keep(name, asdict(result) | {"ok": result.is_good})
        del waiting[name]
        if record.seconds_left <= 0:
            raise OutOfTime

    if waiting and record.seconds_left > 0:
        building = [replace(job, time_limit=BUILD_SECONDS) for job in builds(list(waiting.values()))]
        run_jobs(building, 1, lambda result: context.say(f"  {result.name}: {result.status} {result.why}"))
        try:
            run_jobs(list(waiting.values()), min(AT_ONCE, usable_cores()), keep)
        except OutOfTime:
            context.say(f"  no time was left for {len(waiting)} cases")
    for name in waiting:
        record.leave_out(name)
    fields = ({name: value for name, value in point.items() if name in _FIELDS} for point in record.points.values())
    return format_table(CheckResult(**one) for one in fields).splitlines()


_FIELDS = CheckResult.__dataclass_fields__.keys()


def jobs(context: Context, backends: tuple[str, ...]) -> list[Job]:
    """Lists all cases of single ops, the most important first."""
    device = context.device
    found = [
        Job(case.name, case.op, backend, str(device), CASE_SECONDS)
        for backend in backends
        for case in kernel_cases(device, backend)
        if not context.is_rehearsal or case.op == REHEARSED
    ]
    rank = {op: number for number, op in enumerate(FIRST)}
    return sorted(found, key=lambda job: (backends.index(job.backend), rank.get(job.op, len(rank))))


def kernel_cases(device: torch.device, backend: str) -> list[Case]:
    """Lists the cases of single ops. `engine-equal` runs the whole demo model."""
    return [case for case in cases(Target(backend, device)) if case.op != DEMO]
