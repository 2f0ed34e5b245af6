"""Every op of every GPU backend on small inputs, each case in a process of its own: what other parts can rely on."""

from __future__ import annotations

from dataclasses import asdict

import torch

from rwkv_batch.checks import CheckResult, format_table, run_checks
from rwkv_batch.checks.cases import DEMO, Case, cases
from rwkv_batch.checks.target import Target

from .context import Context

CASE_SECONDS = 60.0
"""A kernel that hangs costs no more. What Triton compiles of it is compiled before."""
KERNELS = ("triton", "cuda")
REHEARSED = ("log_normalizer",)


def run(context: Context) -> list[str]:
    """Points carry the fields of `CheckResult`."""

    def keep(result: CheckResult) -> None:
        context.record.keep(f"{result.name} {result.backend}", asdict(result) | {"ok": result.is_good})

    if context.is_rehearsal:
        backends, ops = ("reference",), REHEARSED
    else:
        backends = KERNELS
        ops = tuple({case.op: None for backend in KERNELS for case in kernel_cases(context.device, backend)})
    found = run_checks([context.device], backends, ops=ops, time_limit=CASE_SECONDS, report=keep)
    return format_table(found).splitlines()


def kernel_cases(device: torch.device, backend: str) -> list[Case]:
    """Those of single ops; `engine-equal` runs the whole demo model."""
    return [case for case in cases(Target(backend, device)) if case.op != DEMO]
