"""CUDA kernels on a CPU: their sources compiled by g++ with a shim, run in a process that the sanitizers watch.

Each call sends its tensors to the process, which gives every one an allocation of exactly its size, and takes them all
back. The process ends where a kernel touches what is not its own, is undefined, or whose threads wait for one another
in vain; its words are in the error.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rwkv_batch.cuda_kernels.build import SOURCES, Specialization

HOST = Path(__file__).with_name("cuda_host")
FLAGS = ("-std=c++17", "-Og", "-g1", "-fPIC", "-fno-strict-aliasing")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


class KernelError(RuntimeError):
    """The output of the process before it ended."""


class HostRunner:
    """Compiles and runs; what `rwkv_batch.cuda_kernels.launch.host_runner` is set to."""

    def __init__(self, folder: Path, sources: Path = SOURCES) -> None:
        self._folder = folder
        self._sources = sources
        self._worker: subprocess.Popen[bytes] | None = None
        self._words = (folder / "words").open("w+b")

    def __call__(
        self,
        spec: Specialization,
        grid: Sequence[int],
        threads: int,
        params: ctypes.Structure,
        tensors: Mapping[str, Tensor],
    ) -> None:
        worker = self._started()
        header = f"{self._library(spec)} {grid[0]} {grid[1]} {threads} {ctypes.sizeof(params)} {len(tensors)}\n"
        message = [header.encode(), bytes(params)]
        extents = {name: _extent(tensor) for name, tensor in tensors.items()}
        before = {name: extent.clone() for name, extent in extents.items()}
        for name, extent in extents.items():
            offset = getattr(type(params), name).offset
            message += [offset.to_bytes(8, "little"), extent.numel().to_bytes(8, "little"), extent.numpy().tobytes()]
        try:
            worker.stdin.write(b"".join(message))
            worker.stdin.flush()
            answer = worker.stdout.read(sum(extent.numel() for extent in extents.values()))
        except BrokenPipeError:
            answer = b""
        if len(answer) != sum(extent.numel() for extent in extents.values()):
            self.close()
            self._words.seek(0)
            raise KernelError(f"{spec}: {self._words.read().decode(errors='replace')[-3000:]}")
        start = 0
        for name, extent in extents.items():
            after = torch.frombuffer(
                bytearray(answer[start : start + extent.numel()]) or bytearray(1), dtype=torch.uint8
            )
            after = after[: extent.numel()]
            # Only what has changed: between one tensor's numbers there may be another's.
            extent.copy_(torch.where(after != before[name], after, extent))
            start += extent.numel()

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._worker is not None:
            self._worker.stdin.close()
            self._worker.stdout.close()
            self._worker.wait()
            self._worker = None

    def __enter__(self) -> HostRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._words.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is None:
            program = self._folder / "worker"
            if not program.exists():
                _compile(str(HOST / "worker.cpp"), "-o", str(program), "-ldl")
            self._words.seek(0)
            self._words.truncate()
            self._worker = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env={**os.environ, **ENVIRONMENT},
            )
        return self._worker

    def _library(self, spec: Specialization) -> Path:
        path = self._folder / f"{'-'.join((spec.kernel, *spec.defines)).replace('=', '-')}.so"
        if not path.exists():
            defines = [f"-D{define}" for define in spec.defines]
            defines += [f"-DKERNEL={spec.kernel}", f'-DSOURCE="{spec.kernel}.cu"', f"-I{self._sources}"]
            _compile("-shared", *defines, str(HOST / "entry.cpp"), "-o", str(path))
        return path


def unavailable() -> str | None:
    """Why kernels cannot be compiled here, if so."""
    return None if shutil.which("g++") else "no g++ on this machine"


def _compile(*arguments: str) -> None:
    done = subprocess.run(["g++", *FLAGS, *SANITIZERS, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"g++ failed:\n{done.stderr[-3000:]}")


def _extent(tensor: Tensor) -> Tensor:
    """The bytes from a tensor's first element to its last one, whatever else lies between."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((length,), (1,)).view(torch.uint8)
