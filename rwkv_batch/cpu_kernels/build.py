"""Builds and loads the native library: once for each source, compiler and processor, under a lock, in a private folder.

The sources include no torch headers, so that a build takes seconds. A build is made in a temporary folder, which is
renamed when the build is complete: a killed build leaves no incomplete library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from ..kernel_support.ninja import built, escaped

SOURCES = Path(__file__).with_name("csrc")
FLAGS = "-std=c++17 -O3 -march=native -fopenmp -fPIC -fno-math-errno -fno-trapping-math"
LIBRARY = "kernels.so"


class BuildError(RuntimeError):
    """The library cannot be built; the message says why."""


@cache
def library() -> ctypes.CDLL:
    """The loaded library, built if need be.

    Raises:
        BuildError: there is no compiler, or it failed; the message holds its output.
    """
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("no C++ compiler (g++) on this machine")
    try:
        from filelock import FileLock

        cache_folder = Path.home() / ".cache" / "rwkv_batch" / "cpu_kernels"
        cache_folder.mkdir(parents=True, exist_ok=True)
        cache_folder.chmod(0o700)
        folder = cache_folder / _key(compiler)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / LIBRARY).exists():
                _build(compiler, folder)
        return ctypes.CDLL(str(folder / LIBRARY))
    except (OSError, ImportError, RuntimeError) as error:
        raise BuildError(f"cannot build the native kernels: {error}") from error


@cache
def unavailable() -> str | None:
    """The reason why the library cannot be built or loaded on this machine, if so."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


def _build(compiler: str, folder: Path) -> None:
    with built(folder.parent, _ninja_lines(compiler), compiler, "-j", "2") as work:
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)


def _ninja_lines(compiler: str) -> list[str]:
    sources = sorted(SOURCES.glob("*.cpp"))
    return [
        f"rule compile\n  command = {compiler} {FLAGS} -MMD -c $in -o $out",
        f"rule link\n  command = {compiler} -shared {FLAGS} $in -o $out",
        *(f"build {source.stem}.o: compile {escaped(source)}" for source in sources),
        f"build {LIBRARY}: link {' '.join(source.stem + '.o' for source in sources)}",
    ]


def _key(compiler: str) -> str:
    """A name for what the binary depends on: sources, flags, compiler and processor."""
    digest = hashlib.sha256(FLAGS.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout)
    digest.update(_processor().encode())
    return f"{platform.machine()}-{digest.hexdigest()[:24]}"


def _processor() -> str:
    """The instruction sets of this processor, as text."""
    cpuinfo = Path("/proc/cpuinfo")
    if os.name == "posix" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
