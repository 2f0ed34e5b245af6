"""Compiles the kernels of some ops for one device, in a process of its own: a compiler may crash, and it may hang.

The process is started by `probe.py`. It writes one line of JSON to a file when it is ready, and one after each op.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler.errors import CompilationError

from ..kernel_support.builds import in_short
from .specialization import compile_for

PR_SET_PDEATHSIG = 1
"""Of Linux' `prctl`: the signal that a process gets when the thread that started it ends."""


def main(parent: int, results: str, errors: str, time_limit: int, target: Sequence[Any], ops: Sequence[str]) -> None:
    """Compile the specializations that each op marks for this.

    Args:
        parent: number of the process that started this one. On Linux, this process is killed when that one ends.
        results: the file that lines are added to: {}, and then for each op what `Outcome` in probe.py holds.
        errors: the file that this process's standard error is appended to; it is emptied before each op.
        time_limit: seconds for an op, after which SIGALRM ends this process.
        target: arguments of `GPUTarget`.
        ops: names of modules in this package.
    """
    _end_with(parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with open(results, "a") as file:
        print("{}", file=file, flush=True)
        for op in ops:
            signal.alarm(time_limit)
            os.ftruncate(2, 0)
            print(json.dumps(_compile(op, GPUTarget(*target), Path(errors))), file=file, flush=True)


def _end_with(parent: int) -> None:
    """Ends this process with its parent, which may be killed while the compiler runs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the process that asked has ended")  # before the call above


def _compile(op: str, target: GPUTarget, errors: Path) -> dict[str, Any]:
    label, shared = "", 0
    try:
        for spec in import_module(f".{op}", __package__).specializations():
            if spec.is_probe:
                label = f"{spec.kernel.__name__}: "
                shared = max(shared, compile_for(spec, target).metadata.shared)
    except Exception as error:
        # A pass of the compiler prints its error; its exception only says that the pass failed.
        printed = errors.read_text(errors="replace")
        is_final = "PassManager" in str(error) or (isinstance(error, CompilationError) and not _lacks_resources(error))
        return {"failure": label + in_short(f"{_words(error)}\n{printed}"), "shared": 0, "is_final": is_final}
    return {"failure": None, "shared": shared, "is_final": True}


def _lacks_resources(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, is about memory or a file.

    Triton raises a `CompilationError` for any failure while it visits a kernel's source, mostly `from None`.
    """
    while error is not None:
        if isinstance(error, (MemoryError, OSError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _words(error: BaseException) -> str:
    """Type and message of an exception's first cause. A `CompilationError` has its message after lines of source."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.rpartition(chr(10))[2] if isinstance(error, CompilationError) else text}"
