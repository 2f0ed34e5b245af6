"""Compiles kernels to cubins: by NVRTC when a kernel is first launched, or by nvcc ahead of time.

Cubins are kept in a private folder. The name of a cubin is a hash of its source, options, architecture and compiler. It
is written to a temporary file, which is renamed when it is complete, under a lock: a killed build leaves no incomplete
cubin.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from ..kernel_support.builds import write_whole
from ..kernel_support.cache import kept, one_at_a_time, private_folder
from ..kernel_support.ninja import built, escaped
from .nvrtc import nvrtc

FOLDER = "cuda_kernels"
SOURCES = Path(__file__).with_name("csrc")
OPTIONS = ("-std=c++17",)
"""Options of both compilers."""
NO_COMPILER = (
    "no NVRTC (libnvrtc) and no nvcc on this machine: install torch's build for CUDA, which brings NVRTC, "
    "or the toolkit"
)


TENSOR_CORES = 80
"""The first architecture, sm_80, with the tensor core instructions and asynchronous copies that mm8_seq uses."""


class BuildError(RuntimeError):
    """A kernel cannot be built; the message says why."""


class Specialization(NamedTuple):
    """A compilation of a kernel."""

    kernel: str
    """The stem of its source, and its function's name."""
    defines: tuple[str, ...]
    """Macros as NAME=VALUE."""

    @property
    def min_architecture(self) -> int:
        """The oldest architecture that the kernel compiles for, such as 80 for sm_80; 0 for any."""
        return TENSOR_CORES if self.kernel == "mm8_seq" else 0

    @property
    def source(self) -> Path:
        return SOURCES / f"{self.kernel}.cu"

    def __str__(self) -> str:
        return f"{self.kernel} {' '.join(self.defines)}"


def specializations() -> list[Specialization]:
    """The compilations that common models launch, each once."""
    modules = (
        import_module(f".{path.stem}", __package__)
        for path in sorted(SOURCES.parent.glob("*.py"))
        if "\ndef specializations(" in path.read_text() and path != Path(__file__)
    )
    return list(dict.fromkeys(spec for module in modules for spec in module.specializations()))


def folder() -> Path:
    """The folder of cubins, which only this user can read; made if it is missing."""
    return private_folder(FOLDER)


def unavailable() -> str | None:
    """The reason why this machine has no kernels and cannot compile any, if so."""
    if any(True for _ in kept(FOLDER, "*-nvcc-*.cubin")):
        return None
    try:
        folder()
    except OSError as error:
        return str(error)
    return None if nvrtc() or nvcc() else NO_COMPILER


def image(spec: Specialization, capability: tuple[int, int]) -> bytes:
    """The code that the driver loads: a cubin, or PTX for a device that is newer than the compiler.

    A cubin that nvcc has built ahead of time is taken first; else NVRTC compiles, or nvcc where there is no NVRTC.

    Raises:
        BuildError: there is no compiler, or it failed; the message holds its output.
    """
    compiler = nvrtc()
    target = architecture(capability, compiler.architectures() if compiler else None)
    try:
        name = _name(spec, target)
        if ahead := list(kept(FOLDER, f"{name}-nvcc-*.cubin")):
            return ahead[-1].read_bytes()
        if compiler is None:
            return build_ahead([spec], [target])[0].read_bytes()
        for path in kept(FOLDER, f"{name}-{compiler.version}.cubin"):
            return path.read_bytes()
        path = folder() / f"{name}-{compiler.version}.cubin"
        with one_at_a_time(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                write_whole(path, compiler.compile(spec.source, options(spec, target)))
        return path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise BuildError(f"cannot build {spec} for {target}: {error}") from error


def build_ahead(specs: Sequence[Specialization], targets: Iterable[str]) -> list[Path]:
    """Compiles with nvcc, in parallel, the missing cubins for each target; returns the paths of all.

    Raises:
        BuildError: there is no nvcc, or it failed; the message holds its output.
    """
    compiler = nvcc()
    if compiler is None:
        raise BuildError("no nvcc on this machine: put the CUDA toolkit's bin folder on PATH")
    try:
        version = _nvcc_version(compiler)
        wanted = {
            folder() / f"{_name(spec, target)}-{version}.cubin": (spec, target)
            for target in targets
            for spec in specs
            if int(target.partition("_")[2]) >= spec.min_architecture
        }
        with one_at_a_time(folder() / "ahead.lock"):
            missing = {path: what for path, what in wanted.items() if not path.exists()}
            if missing:
                _build(compiler, missing)
    except (OSError, ImportError, RuntimeError) as error:
        raise BuildError(f"cannot build the CUDA kernels: {error}") from error
    return list(wanted)


def options(spec: Specialization, target: str) -> list[str]:
    """Options of a compilation, for NVRTC and nvcc."""
    return [*OPTIONS, f"--gpu-architecture={target}", f"-I{SOURCES}", *(f"-D{define}" for define in spec.defines)]


def architecture(capability: tuple[int, int], supported: list[int] | None) -> str:
    """The best target for a device: its own, an older one of its generation, or PTX of an older generation.

    Args:
        supported: architectures that the compiler knows, ascending; None: it knows the device's.
    """
    number = 10 * capability[0] + capability[1]
    known = [number] if supported is None else [other for other in supported if other <= number]
    if not known:
        raise BuildError(f"the compiler knows sm_{min(supported or [number])} and later, the device is sm_{number}")
    return f"{'sm' if known[-1] // 10 == capability[0] else 'compute'}_{known[-1]}"


@cache
def nvcc() -> str | None:
    """The path of the toolkit's compiler, if it is installed."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@cache
def _nvcc_version(compiler: str) -> str:
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV([\d.]+)", text)
    return f"nvcc-{found[1] if found else hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _build(compiler: str, missing: dict[Path, tuple[Specialization, str]]) -> None:
    lines = ["rule compile\n  command = $nvcc -cubin $options $in -o $out", f"nvcc = {_quoted(compiler)}"]
    for path, (spec, target) in missing.items():
        lines.append(f"build {path.name}: compile {escaped(spec.source)}")
        lines.append(f"  options = {' '.join(_quoted(option) for option in options(spec, target))}")
    with built(folder(), lines, compiler) as work:
        for path in missing:
            os.replace(work / path.name, path)


def _quoted(word: str) -> str:
    """Quotes a word for the shell, and for the ninja file that holds the command."""
    return shlex.quote(word).replace("$", "$$")


def _name(spec: Specialization, target: str) -> str:
    digest = hashlib.sha256(repr((OPTIONS, spec.defines)).encode())
    for source in (*sorted(SOURCES.glob("*.h")), spec.source):
        digest.update(source.read_bytes())
    return f"{spec.kernel}-{target}-{digest.hexdigest()[:24]}"
