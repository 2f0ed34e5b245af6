"""The functions that the process of one case calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BackendError
from ..threads import limit_threads
from .cases import DEMO, cases
from .comparisons import Checks
from .result import CRASHED, FAILED, OK, REFUSED, UNUSABLE, WRONG
from .target import Target, UnusableError, specs

THREADS = 2
"""Threads of each process on a CPU: more than one, so that native kernels run in parallel; few, as many cases run at
once."""
_DEVICE_LOST = ("CUDA error", "CUDA_ERROR", "illegal memory access", "unspecified launch failure", "misaligned address")


def check(name: str, backend: str, device: str) -> dict[str, Any]:
    """Runs one case.

    Returns:
        The fields of a `CheckResult` that this process knows.
    """
    torch.set_num_threads(min(limit_threads(), 1 if device != "cpu" or backend == "reference" else THREADS))
    target = Target(backend, indexed(torch.device(device)))
    try:
        if target.device.type == "cuda":
            torch.cuda.set_device(target.device)
        (case,) = (case for case in cases(target) if case.name == name)
        found = case.run(target)
        if target.device.type == "cuda":
            torch.cuda.synchronize(target.device)
    except BackendError as error:
        status = UNUSABLE if isinstance(error, UnusableError) else REFUSED
        return {"status": status, "why": " ".join(str(error).split())}
    except Exception as error:  # any error of a backend is a result
        return {"status": CRASHED if is_lost(error) else FAILED, "why": first_line(error)}
    result = outcome(found)
    if result["status"] == WRONG and target.device.type == "cuda" and "float32" in name.partition(" state ")[0].split():
        result["why"] += _allowed_tf32()
    return result


def indexed(device: torch.device) -> torch.device:
    """The device with its index. `torch.cuda.set_device` refuses "cuda"."""
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def _allowed_tf32() -> str:
    """A hint where a setting lets PyTorch compute float32 products in TF32; else empty."""
    if not torch.backends.cuda.matmul.allow_tf32:
        return ""
    return "; TF32 is allowed in float32 products: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


def build_native(name: str, backend: str, device: str) -> dict[str, Any]:
    """Builds the native kernels of a CPU; arguments and result as for `check`."""
    from ..cpu_kernels.build import unavailable

    reason = unavailable()
    return {"status": UNUSABLE, "why": " ".join(reason.split())} if reason else {"status": OK}


def compile_triton(name: str, backend: str, device: str, ops: Sequence[str]) -> dict[str, Any]:
    """Compiles Triton's kernels of ops, or all if the demo model is among them. The cases report which do not compile.

    Other arguments and the result are as for `check`.
    """
    try:
        from ..triton_kernels import probe
    except ImportError as error:
        return {"status": REFUSED, "why": first_line(error)}
    probe.prepare(list(specs()) if DEMO in ops else ops, torch.device(device))
    return {"status": OK}


def outcome(found: Checks) -> dict[str, Any]:
    """The fields of a `CheckResult` for comparisons: the one with the largest share of its limit decides."""
    worst = found.worst
    error = worst.value if math.isfinite(worst.value) else None
    wrong = max(found.wrong, key=lambda one: one.share, default=None)
    more = f" (and {len(found.wrong) - 1} more)" if len(found.wrong) > 1 else ""
    status, why = (WRONG, f"{wrong}{more}") if wrong else (OK, "")
    return {"status": status, "why": why, "worst_error": error, "limit": worst.limit}


def is_lost(error: BaseException) -> bool:
    """Whether the device is lost: after an illegal access or a failed launch, but not after out-of-memory."""
    text = str(error)
    return "out of memory" not in text and any(sign in text for sign in _DEVICE_LOST)


def first_line(error: BaseException) -> str:
    """An error's class, and the first line of its message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
