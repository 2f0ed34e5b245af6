"""Tries whether Triton compiles the kernels of an op for a device, and can launch there, when an engine is built.

Each op's hardest specializations are compiled once, in a separate process, as a compiler may crash or hang. The outcome
is kept on disk, except for failures that another attempt may not meet: the next engine tries again.
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
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..kernel_support.builds import in_short, is_out_of_memory, write_whole
from ..kernel_support.cache import kept, one_at_a_time, private_folder
from ..kernel_support.unsupported import Settings, UnsupportedReason
from . import launch

SOURCES = Path(__file__).parent
FOLDER = "triton_kernels"
"""Cache folder of the outcomes."""
TIME_LIMIT = 120
"""Seconds for the kernels of one op; a compiler that takes longer counts as hanging."""
CODE = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from importlib import import_module; import_module(given['module']).main(*given['arguments'])"
)
"""The code of the compiler's process: it imports this package from the same place as this process."""


class Target(NamedTuple):
    """The device that Triton compiles for: the arguments of its `GPUTarget`."""

    backend: str
    """"cuda" or "hip"."""
    architecture: int | str
    """90 for compute capability 9.0; "gfx942"."""
    warp_size: int


class Outcome(NamedTuple):
    """The outcome of compiling an op's kernels."""

    failure: str | None
    """The reason why they do not compile, in one line; None where they do."""
    shared: int = 0
    """Bytes of shared memory that the kernels need, at most."""
    is_final: bool = False
    """Whether another attempt would give the same."""


_known: dict[tuple[str, Target], Outcome] = {}
_launches: dict[int, str | None] = {}
"""Number of a device → result of `launch_failure`."""
_launching = Lock()
"""Held during a trial launch, which changes Triton's settings for the whole process."""


def probed(op: str, settings: Settings = launch.unsupported) -> UnsupportedReason:
    """The `unsupported_reason` of an op: the reason of `settings`, else the reason why Triton fails.

    The first call for a kind of device compiles.
    """
    return UnsupportedReason(settings, lambda device, *_: failure(op, device))


def failure(op: str, device: torch.device) -> str | None:
    """The reason why Triton does not compile this op's kernels for the device, or does not launch there, if so.

    Raises:
        Exception: as `launch_failure`.
    """
    if device.type != "cuda" or launch.is_interpreted():
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    outcome = outcomes((op,), _target(index))[op]
    if outcome.failure:
        return f"Triton {triton.__version__} does not compile its kernels: {outcome.failure}"
    limit = _shared_memory(index)
    if outcome.shared > limit:
        return f"its kernels need {outcome.shared} bytes of shared memory, the device has {limit}"
    return launch_failure(index)


def prepare(ops: Sequence[str], device: torch.device) -> None:
    """Compiles for several ops in one process, which `failure` would do in one process for each.

    Failures in this process that another attempt may not meet are forgotten first.

    Args:
        ops: names; ops without a Triton kernel are ignored.
    """
    if device.type != "cuda" or launch.is_interpreted() or launch.unsupported(device, torch.float32, {}):
        return
    for key in [key for key, outcome in _known.items() if outcome.failure and not outcome.is_final]:
        _known.pop(key, None)
    for index in [index for index, found in _launches.items() if found]:
        _launches.pop(index, None)
    index = torch.cuda.current_device() if device.index is None else device.index
    outcomes([op for op in ops if (SOURCES / f"{op}.py").exists()], _target(index))


def launch_failure(index: int) -> str | None:
    """The reason why Triton cannot launch kernels on the CUDA or ROCm device of this number, if so.

    A tiny kernel is compiled and launched. Triton builds the code that launches kernels with a C compiler: some
    versions once, others for each kernel, so that a kernel from Triton's cache would prove nothing.

    The launch is tried in this process. Another process would need its own CUDA context, which takes seconds and
    hundreds of MB of the GPU's memory, and which a GPU in exclusive mode refuses. `failure` calls this last, after the
    compiler has succeeded in another process.

    Raises:
        Exception: out of memory, which is no fault of Triton's.
    """
    with _launching:
        if index not in _launches:
            try:
                _launches[index] = None if _launch(index) else "a kernel that Triton launched did not write its result"
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = in_short(str(error)) or type(error).__name__
                _launches[index] = f"Triton {triton.__version__} cannot launch kernels here: {reason}"
        return _launches[index]


def _launch(index: int) -> bool:
    """Launches a kernel; whether it wrote its result. Triton's builds for it go to a new folder inside Triton's cache.

    The folder is not among temporary files, as machines may forbid loading libraries from there.
    """
    with torch.cuda.device(index):
        _ = triton.runtime.driver.active.utils  # built once for all kernels, possibly read from the cache
        out = torch.zeros(1, dtype=torch.int32, device=torch.device("cuda", index))
        parent = triton.knobs.cache.dir
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
            with triton.knobs.cache.scope():
                triton.knobs.cache.dir = folder
                triton.jit(_write_one)[(1,)](out)  # a new kernel, as a failed one may be incomplete
            return bool(out.item() == 1)


def _write_one(p_out):  # type: ignore[no-untyped-def]
    tl.store(p_out, 1)


def outcomes(ops: Sequence[str], target: Target) -> dict[str, Outcome]:
    """The outcome for each op: known in this process, read from disk, or compiled now.

    Processes that call this at the same time compile once.
    """
    found = _found(ops, target)
    if len(found) < len(ops):
        with _lock():
            found = _found(ops, target)  # another process may have compiled meanwhile
            for op, outcome in _compile([op for op in ops if op not in found], target).items():
                found[op] = _known[op, target] = outcome
                if outcome.is_final:
                    with suppress(OSError):  # without a place for it, it is compiled again next time
                        path = private_folder(FOLDER) / _file_name(op, target)
                        write_whole(path, json.dumps(outcome._asdict()).encode())
    return found


def _found(ops: Sequence[str], target: Target) -> dict[str, Outcome]:
    """The outcomes that are known in this process, or on disk."""
    found = {}
    for op in ops:
        if outcome := _known.get((op, target)) or _read(op, target):
            found[op] = _known[op, target] = outcome
    return found


@contextmanager
def _lock() -> Iterator[None]:
    """A lock that one process holds at a time; no lock where the lock file cannot be made."""
    try:
        path = private_folder(FOLDER) / "probe.lock"
    except OSError:
        yield
        return
    with one_at_a_time(path):
        yield


def _read(op: str, target: Target) -> Outcome | None:
    """An outcome from disk; None where there is none, or where the file is damaged."""
    for path in kept(FOLDER, _file_name(op, target)):
        with suppress(OSError, ValueError, TypeError):
            outcome = Outcome(**json.loads(path.read_bytes()))
            if isinstance(outcome.shared, int) and isinstance(outcome.failure, str | None):
                return outcome
    return None


def _file_name(op: str, target: Target) -> str:
    """The name of the file of an op's outcome: a hash of Triton, its assembler, the device and the kernels."""
    digest = hashlib.sha256(repr((triton.__version__, *_assemblers(target), *target)).encode())
    for source in sorted(SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return f"{op}-{target.architecture}-{digest.hexdigest()[:24]}.json"


def _assemblers(target: Target) -> list[str]:
    """Triton's assemblers for CUDA devices, which its settings can replace: path, version and time of each file."""
    found = []
    for name in ("ptxas", "ptxas_blackwell") if target.backend == "cuda" else ():
        with suppress(OSError, RuntimeError):  # without it, Triton fails only where it needs it
            tool = getattr(triton.knobs.nvidia, name)
            found.append(f"{tool.path} {tool.version} {os.stat(tool.path).st_mtime_ns}")
    return found


def _compile(ops: Sequence[str], target: Target) -> dict[str, Outcome]:
    """Compiles each op. Where the compiler ends its process, a new process compiles the remaining ops."""
    found: dict[str, Outcome] = {}
    while rest := [op for op in ops if op not in found]:
        try:
            lines, ending = _run(rest, target)
        except OSError as error:
            return found | dict.fromkeys(rest, Outcome(f"its process cannot start: {in_short(str(error))}"))
        if not lines:
            return found | dict.fromkeys(rest, Outcome(f"its process {ending}"))
        found |= {op: Outcome(**line) for op, line in zip(rest, lines[1:], strict=False)}
        if len(lines) <= len(rest):
            found[rest[len(lines) - 1]] = Outcome(f"the compiler {ending}")
    return found


def _run(ops: Sequence[str], target: Target) -> tuple[list[dict[str, Any]], str]:
    """Runs probe_worker.py; returns the lines that it wrote, and how its process ended.

    Raises:
        OSError: no process, or no folder for temporary files.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results, errors = Path(folder, "results"), Path(folder, "errors")
        results.touch()
        given = {
            "path": [str(entry) for entry in sys.path],
            "module": f"{__package__}.probe_worker",
            "arguments": (os.getpid(), str(results), str(errors), TIME_LIMIT, target, ops),
        }
        with errors.open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable or "", "-c", CODE, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                status = process.wait()
            finally:
                # Ends the whole group: the compiler may have started an assembler that hangs.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = [json.loads(line) for line in results.read_text().split("\n")[:-1]]  # the last may be incomplete
        return lines, _ending(status, errors.read_text(errors="replace"))


def _ending(status: int, printed: str) -> str:
    """How a process ended, in words."""
    if status == -signal.SIGALRM:
        return f"did not end within {TIME_LIMIT} s"
    how = f"was ended by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"ended with code {status}"
    return f"{how}: {in_short(printed)}" if printed.strip() else how


def _target(index: int) -> Target:
    """The target of a device."""
    if torch.version.hip is not None:
        properties = torch.cuda.get_device_properties(index)
        return Target("hip", properties.gcnArchName.partition(":")[0], properties.warp_size)
    major, minor = torch.cuda.get_device_capability(index)
    return Target("cuda", 10 * major + minor, 32)


def _shared_memory(index: int) -> int:
    """Bytes of shared memory that a program may have."""
    properties = torch.cuda.get_device_properties(index)
    return max(properties.shared_memory_per_block, getattr(properties, "shared_memory_per_block_optin", 0))
