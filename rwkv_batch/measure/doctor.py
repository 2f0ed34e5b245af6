"""The command `rwkv-batch doctor`: a report of hardware and software, and checks of the kernels on this machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import BackendError
from ..threads import usable_cores

if TYPE_CHECKING:
    import torch

    from ..checks import CheckResult

PACKAGES = ("torch", "triton", "numpy", "pyarrow", "pydantic", "tokenizers", "llguidance", "huggingface_hub")
CUDA_TARGETS = ("sm_80", "sm_90", "sm_120")
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")


def findings() -> Iterator[tuple[str, str]]:
    """The lines of the report: a name and a finding each."""
    yield "rwkv_batch", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, _installed(package)
    yield "cpu", f"{os.cpu_count()} cores, {usable_cores()} of them for this process; {_cpu_flags()}"
    yield "memory", _memory()
    yield from _devices()
    for compiler in ("g++", "nvcc", "ninja"):
        yield compiler, _first_line(compiler)
    yield "nvrtc", _nvrtc()
    demo = Path(__file__).parents[1] / "demo" / "model.safetensors"
    yield (
        "demo model",
        f"{demo.stat().st_size / 2**20:.1f} MiB" if demo.is_file() else "missing: install the package again",
    )


def format_findings(found: Iterable[tuple[str, str]]) -> str:
    """The report as a text, a line for each finding."""
    lines = list(found)
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{finding}" for name, finding in lines)


def check(
    devices: Sequence[torch.device] | None = None,
    backends: Sequence[str] | None = None,
    ops: Sequence[str] | None = None,
    path: Path | None = None,
    at_once: int | None = None,
) -> bool:
    """Check the ops and the demo model, and print the results as a table; progress goes to standard error.

    Args:
        devices, backends, ops, at_once: as for `checks.run_checks`.
        path: a JSON file for the results; None writes none.

    Returns:
        True if every case is ok or refused, and at least one is ok.
    """
    from ..checks import format_table, run_checks
    from ..checks.result import OK

    def say(result: CheckResult) -> None:
        print(f"{result.name} ({result.backend}, {result.device}): {result.status}", file=sys.stderr, flush=True)

    results = run_checks(devices, backends, ops=ops, at_once=at_once, report=say)
    print(format_table(results))
    if path is not None:
        path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return all(result.is_good for result in results) and any(result.status == OK for result in results)


def build_kernels() -> Iterator[tuple[str, str]]:
    """Build the CUDA kernels with nvcc: for this machine's GPUs, or for `CUDA_TARGETS` on a machine without a GPU.

    Raises:
        BackendError: nvcc is missing or failed; the message has nvcc's output.
    """
    import torch

    from ..cuda_kernels import build

    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    targets = sorted(f"sm_{major}{minor}" for major, minor in capabilities) or CUDA_TARGETS
    try:
        paths = build.build_ahead(build.specializations(), targets)
    except build.BuildError as error:
        raise BackendError(str(error)) from error
    yield "cuda kernels", f"{len(paths)} built for {', '.join(targets)}, in {build.folder()}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    words = set(path.read_text().split()) if path.is_file() else set()
    return " ".join(flag for flag in CPU_FLAGS if flag in words) or "features unknown"


def _memory() -> str:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return "unknown"
    sizes = dict(line.split(":") for line in path.read_text().splitlines())
    total, free = (int(sizes[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GiB, {free:.1f} GiB of it available"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    yield "cuda", f"version {torch.version.cuda}" if torch.cuda.is_available() else "no device that torch can use"
    yield "driver", _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    yield "tf32", _tf32()
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        yield f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB, {capability}"


def _tf32() -> str:
    """PyTorch's settings for float32 products with fewer bits."""
    import torch

    allowed = "allowed" if torch.backends.cuda.matmul.allow_tf32 else "not allowed"
    return f"{allowed} in float32 products on a GPU; float32 matmul precision: {torch.get_float32_matmul_precision()}"


def _nvrtc() -> str:
    from ..cuda_kernels.nvrtc import nvrtc

    library = nvrtc()
    return f"{library.path}: {library.version}" if library else "not found"


def _first_line(program: str, *arguments: str) -> str:
    """The first line that a program prints when it is asked for its version; the last line of nvcc."""
    path = shutil.which(program) or shutil.which(program, path=os.path.dirname(sys.executable))
    if path is None:
        return "not found"
    try:
        command = [path, *(arguments or ("--version",))]
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: {error}"
    lines = output.strip().splitlines() or ["prints no version"]
    return f"{path}: {lines[-1] if program == 'nvcc' else lines[0]}"
