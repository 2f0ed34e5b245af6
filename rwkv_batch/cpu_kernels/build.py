"""Builds and loads the native library: once for each source and processor, under a lock, in a private folder.

The sources include no torch headers, so that a build takes seconds. A library is built in a temporary folder and gets
its name when it is complete: a killed build leaves no incomplete library. A library that is there needs no compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..kernel_support.cache import kept, one_at_a_time, private_folders
from ..kernel_support.ninja import built, escaped

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("csrc")
# On ARM clang has the one, on x86 the other; g++ has both.
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = f"-std=c++17 -O3 {NATIVE} -fPIC -pthread -fno-math-errno -fno-trapping-math"
FOLDER = "cpu_kernels"


class BuildError(RuntimeError):
    """The library cannot be built; the message says why."""


@cache
def library() -> ctypes.CDLL:
    """The loaded library, built if need be.

    Raises:
        BuildError: there is no compiler, it failed, or no library can be loaded; the message holds the reasons.
    """
    name = f"{_key()}.so"
    reasons: list[str] = []
    for path in kept(FOLDER, name):
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            reasons.append(f"cannot load {path}: {error}")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise BuildError("; ".join(["no C++ compiler (g++) on this machine", *reasons]))
    try:
        for folder in private_folders(FOLDER, for_libraries=True):
            try:
                return _build(compiler, folder / name)
            except OSError as error:
                reasons.append(str(error))
    except (OSError, ImportError) as error:
        reasons.append(str(error))
    raise BuildError(f"cannot build the native kernels: {'; '.join(dict.fromkeys(reasons))}")


@cache
def unavailable() -> str | None:
    """The reason why the library cannot be built or loaded on this machine, if so."""
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


def _build(compiler: str, path: Path) -> ctypes.CDLL:
    """Builds a library at `path` and loads it, or loads the one that another process has built meanwhile.

    Raises:
        OSError: the compiler failed, the library cannot be written, or it cannot be loaded.
        ImportError: there is no ninja.
    """
    with one_at_a_time(path.with_suffix(".lock")):
        with suppress(OSError):
            return ctypes.CDLL(str(path))
        logger.warning("building the native CPU kernels in %s; this takes up to a minute, once", path.parent)
        with built(path.parent, _ninja_lines(compiler, path.name), compiler, "-j", "2") as work:
            with open(work / path.name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(work / path.name, path)
    return ctypes.CDLL(str(path))


def _ninja_lines(compiler: str, library: str) -> list[str]:
    sources = sorted(SOURCES.glob("*.cpp"))
    return [
        f"rule compile\n  command = {compiler} {FLAGS} -MMD -c $in -o $out",
        f"rule link\n  command = {compiler} -shared {FLAGS} $in -o $out",
        *(f"build {source.stem}.o: compile {escaped(source)}" for source in sources),
        f"build {library}: link {' '.join(source.stem + '.o' for source in sources)}",
    ]


def _key() -> str:
    """A name for what the binary depends on: sources, flags and processor. Without a compiler it is known, too."""
    digest = hashlib.sha256(FLAGS.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
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
