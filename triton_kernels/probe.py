"""Whether Triton compiles the kernels of an op for a device, and can launch there: found out when an engine is built.

Each op's hardest specializations are compiled once, in a process of their own, as a compiler may crash or hang. What
came out is kept on disk, except for failures that another attempt might not meet.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from filelock import FileLock

from . import launch
from .builds import in_short, private_folder, write_whole
from .support import Settings, UnsupportedReason

SOURCES = Path(__file__).parent
TIME_LIMIT = 120
"""Seconds for the kernels of one op; a compiler that takes longer is taken to hang."""
CODE = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from importlib import import_module; import_module(given['module']).main(*given['arguments'])"
)
"""What the process of the compiler runs: this package, imported from where this process has it."""


class Target(NamedTuple):
    """What Triton compiles for: the arguments of its `GPUTarget`."""

    backend: str
    """"cuda" or "hip"."""
    architecture: int | str
    """90 for compute capability 9.0; "gfx942"."""
    warp_size: int


class Outcome(NamedTuple):
    """What became of an op's kernels."""

    failure: str | None
    """Why they do not compile, in one line."""
    shared: int = 0
    """Bytes of shared memory: the most that one of them needs."""
    is_final: bool = False
    """Another attempt gives the same."""


_known: dict[tuple[str, Target], Outcome] = {}


def probed(op: str, settings: Settings = launch.unsupported) -> UnsupportedReason:
    """The `unsupported_reason` of an op: what `settings` says, else what Triton makes of the kernels.

    The first call for a kind of device compiles.
    """
    return UnsupportedReason(settings, lambda device, dtype: failure(op, device))


def failure(op: str, device: torch.device) -> str | None:
    """Why Triton does not compile this op's kernels for the device, or does not launch there, if so."""
    if device.type != "cuda" or launch.is_interpreted():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    if reason := launch_failure(index):
        return reason
    outcome = outcomes((op,), _target(index))[op]
    if outcome.failure:
        return f"Triton {triton.__version__} does not compile its kernels: {outcome.failure}"
    limit = _shared_memory(index)
    if outcome.shared > limit:
        return f"its kernels need {outcome.shared} bytes of shared memory, the device has {limit}"
    return None


def prepare(ops: Sequence[str], device: torch.device) -> None:
    """Compile for several ops at a time what `failure` would compile for each by itself: one process starts, not many.

    Args:
        ops: names; those without a kernel here are passed over.
    """
    if device.type != "cuda" or launch.is_interpreted() or launch.unsupported(device, torch.float32, {}):
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    if launch_failure(index) is None:
        outcomes([op for op in ops if (SOURCES / f"{op}.py").exists()], _target(index))


@cache
def launch_failure(index: int) -> str | None:
    """Why no kernel of Triton's can be launched on the CUDA or ROCm device of this number, if so.

    One that does next to nothing is compiled and launched. Triton builds the code that launches kernels with a C
    compiler: some versions once, others for each kernel, so that what lies in Triton's cache does not count.
    """
    try:
        with torch.cuda.device(index), tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
            _ = triton.runtime.driver.active.utils  # built once for all kernels: this may come from the cache
            triton.knobs.cache.dir = folder
            out = torch.zeros(1, dtype=torch.int32, device=torch.device("cuda", index))
            _one_kernel[(1,)](out)
            if out.item() != 1:
                return "a kernel that Triton launched did not write its result"
    except Exception as error:
        return f"Triton {triton.__version__} cannot launch kernels here: {in_short(str(error)) or type(error).__name__}"
    return None


@triton.jit
def _one_kernel(p_out):  # type: ignore[no-untyped-def]
    tl.store(p_out, 1)


def outcomes(ops: Sequence[str], target: Target) -> dict[str, Outcome]:
    """What became of each op's kernels: known in this process, or on disk, or compiled now.

    Several processes that ask at the same time compile once.
    """
    if any((op, target) not in _known for op in ops):
        with _cache() as folder:
            missing = []
            for op in ops:
                kept = _read(folder / _name(op, target)) if folder else None
                if kept:
                    _known.setdefault((op, target), kept)
                if (op, target) not in _known:
                    missing.append(op)
            for op, outcome in _compile(missing, target).items():
                _known[op, target] = outcome
                if folder and outcome.is_final:
                    with suppress(OSError):  # without a place for it, it is compiled again next time
                        write_whole(folder / _name(op, target), json.dumps(outcome._asdict()).encode())
    return {op: _known[op, target] for op in ops}


@contextmanager
def _cache() -> Iterator[Path | None]:
    """Where outcomes are kept, for one process at a time; None where there is no such place."""
    try:
        folder = private_folder("triton_kernels")
        lock = FileLock(folder / "probe.lock")
        lock.acquire()
    except (OSError, RuntimeError):
        yield None
        return
    try:
        yield folder
    finally:
        lock.release()


def _name(op: str, target: Target) -> str:
    """Of the file with an op's outcome: by all that it depends on, which is Triton, the device and the kernels."""
    digest = hashlib.sha256(repr((triton.__version__, *target)).encode())
    for source in sorted(SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return f"{op}-{target.architecture}-{digest.hexdigest()[:24]}.json"


def _read(path: Path) -> Outcome | None:
    """An outcome that was kept; None where there is none, or where the file is damaged."""
    try:
        outcome = Outcome(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return outcome if isinstance(outcome.shared, int) and isinstance(outcome.failure, str | None) else None


def _compile(ops: Sequence[str], target: Target) -> dict[str, Outcome]:
    """Every op's outcome. Where the compiler ends its process, the ops behind get another one."""
    found: dict[str, Outcome] = {}
    while rest := [op for op in ops if op not in found]:
        lines, ending = _run(rest, target)
        if not lines:
            return found | dict.fromkeys(rest, Outcome(f"its process {ending}"))
        found |= {op: Outcome(**line) for op, line in zip(rest, lines[1:], strict=False)}
        if len(lines) <= len(rest):
            found[rest[len(lines) - 1]] = Outcome(f"the compiler {ending}")
    return found


def _run(ops: Sequence[str], target: Target) -> tuple[list[dict[str, Any]], str]:
    """The lines that probe_worker.py wrote, and how its process ended."""
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder, "results"), Path(folder, "errors")
        results.touch()
        given = {
            "path": sys.path,
            "module": f"{__package__}.probe_worker",
            "arguments": (str(results), str(errors), TIME_LIMIT, target, ops),
        }
        with errors.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                status = process.wait()
            finally:
                with suppress(ProcessLookupError):  # also an assembler that the compiler had started, and that hangs
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = [json.loads(line) for line in results.read_text().split("\n")[:-1]]  # the last may be incomplete
        return lines, _ending(status, errors.read_text(errors="replace"))


def _ending(status: int, printed: str) -> str:
    if status == -signal.SIGALRM:
        return f"did not end within {TIME_LIMIT} s"
    how = f"was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with code {status}"
    return f"{how}: {in_short(printed)}" if printed.strip() else how


def _target(index: int) -> Target:
    if torch.version.hip is not None:
        properties = torch.cuda.get_device_properties(index)
        return Target("hip", properties.gcnArchName.partition(":")[0], properties.warp_size)
    major, minor = torch.cuda.get_device_capability(index)
    return Target("cuda", 10 * major + minor, 32)


def _shared_memory(index: int) -> int:
    """Bytes that a program may have."""
    properties = torch.cuda.get_device_properties(index)
    return max(properties.shared_memory_per_block, getattr(properties, "shared_memory_per_block_optin", 0))
