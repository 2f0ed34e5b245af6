"""NVRTC: CUDA's compiler as a library. torch's CUDA wheels bring it; it needs neither the toolkit nor a GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


class Nvrtc:
    """The library, loaded from a path.

    Attributes:
        version: "nvrtc-" and its number.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"nvrtc-{major.value}.{minor.value}"

    def architectures(self) -> list[int]:
        """Architectures that it compiles for, ascending: 90 for compute capability 9.0."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(found)

    def compile(self, source: Path, options: Sequence[str]) -> bytes:
        """Compiles a source to a cubin, or to PTX where the options name a virtual architecture.

        Raises:
            RuntimeError: the source does not compile; the message holds the compiler's output.
        """
        program = ctypes.c_void_p()
        text, name = source.read_bytes(), source.name.encode()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, name, 0, None, None)
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), given)
            if status:
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise RuntimeError(f"{self.version} failed on {source.name}:\n{log[-2000:]}")
            is_virtual = any("=compute_" in option for option in options)
            return self._read(program, "PTX" if is_virtual else "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {self._library.nvrtcGetErrorString(status).decode()}")


@cache
def nvrtc() -> Nvrtc | None:
    """The first library on this machine that loads; libraries of torch's CUDA version are tried first."""
    own = (torch.version.cuda or "").partition(".")[0]
    for path in sorted(_paths(), key=lambda path: not path.endswith(f".so.{own}")):
        try:
            return Nvrtc(path)
        except (OSError, AttributeError, RuntimeError):
            continue
    return None


def _paths() -> Iterator[str]:
    wheels = find_spec("nvidia")
    for folder in wheels.submodule_search_locations or () if wheels else ():
        yield from map(str, sorted(Path(folder).glob("*/lib/libnvrtc.so.*")))
    installed = ctypes.util.find_library("nvrtc")
    if installed:
        yield installed
    yield from map(str, sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*"), reverse=True))
