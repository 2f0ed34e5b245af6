"""Every op of every GPU backend on small inputs, each case in a process of its own: what other parts can rely on."""

from __future__ import annotations

from dataclasses import asdict

from rwkv_batch.checks import CheckResult, format_table, run_checks

from .context import Context

CASE_SECONDS = 40.0
"""A kernel that hangs costs no more."""
KERNELS = ("triton", "cuda")
REHEARSED = ("log_normalizer",)


def run(context: Context) -> list[str]:
    """Points carry the fields of `CheckResult`."""

    def keep(result: CheckResult) -> None:
        context.record.keep(f"{result.name} {result.backend}", asdict(result) | {"ok": result.is_good})

    only = {"backends": ["reference"], "ops": REHEARSED, "at_once": 1} if context.is_rehearsal else {"backends": KERNELS}
    found = run_checks([context.device], time_limit=CASE_SECONDS, report=keep, **only)
    return format_table(found).splitlines()
