"""Probes in C++: the fastest read of memory, and the most products of 8-bit integers, that all threads reach."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from rwkv_batch.cpu_kernels.build import FLAGS, SOURCES

SOURCE = Path(__file__).with_name("native_probes.cpp")
READ_BYTES = 256 << 20
ROUNDS = 1 << 20
REPEATS = 5
"""Runs of each probe. The fastest one counts."""


def read_rate(threads: int) -> float:
    """GB/s that `threads` threads read of 256 MiB, more than caches hold; 0 without a compiler."""
    library = _library()
    if library is None:
        return 0.0
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    arguments = ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(READ_BYTES), ctypes.c_int(threads)
    return READ_BYTES / min(library.read_seconds(*arguments) for _ in range(REPEATS)) / 1e9


def int8_rate(threads: int) -> float:
    """Billions of multiplications and additions a second of the int8 products' instruction; 0 without a compiler."""
    library = _library()
    if library is None:
        return 0.0
    arguments = ctypes.c_int64(ROUNDS), ctypes.c_int(threads)
    seconds = min(library.int8_seconds(*arguments) for _ in range(REPEATS))
    return threads * ROUNDS * library.int8_operations() / seconds / 1e9


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled probes; None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probes.so"
        command = ["g++", *FLAGS.split(), "-shared", f"-I{SOURCES}", str(SOURCE), "-o", str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        library = ctypes.CDLL(str(path))
    library.int8_operations.restype = ctypes.c_int64
    for name in ("read_seconds", "int8_seconds"):
        getattr(library, name).restype = ctypes.c_double
    return library
