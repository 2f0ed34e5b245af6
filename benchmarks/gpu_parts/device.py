"""Facts of the card, and a stopwatch for work on it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.timing import machine

Call = Callable[[], Any]

_COLD_FACTOR = 4
"""Size of all buffers of a rotation ÷ size of the L2 cache."""
_MOST_CALLS = 1500


def about(device: torch.device, commit: str | None, rehearsal: bool, is_dry: bool = False) -> dict[str, Any]:
    """Returns hardware, driver, versions and commit, for every result file.

    Args:
        is_dry: leave the driver out, because no result is kept.
    """
    facts = machine() if shutil.which("git") else {"torch": torch.__version__, "rwkv_batch": "no git"}
    if commit:
        facts["rwkv_batch"] = commit
    facts |= {"rehearsal": rehearsal, "triton": installed("triton"), "cuda": torch.version.cuda, "card": "none"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        } | ({} if is_dry else _driver_facts())
    return facts


def compiler_facts() -> dict[str, Any]:
    """Returns Triton's part of the keys of compiled kernels, and the variables of the environment that matter."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("TRITON_")}
    return {"triton_key": key_digest(), "triton_variables": variables}


def key_digest() -> str:
    """Returns the SHA-256 of Triton's part of the keys of compiled kernels; empty for a Triton without such a part."""
    with suppress(ImportError):
        from triton.runtime import cache

        if hasattr(cache, "triton_key"):
            return hashlib.sha256(cache.triton_key().encode()).hexdigest()
    return ""


def installed(package: str) -> str:
    """Returns the version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


_DRIVER_FIELDS = {"driver": "driver_version", "clock_mhz": "clocks.sm", "memory_clock_mhz": "clocks.mem"}
"""Name of a fact → name of nvidia-smi's field."""


def _driver_facts() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_DRIVER_FIELDS.values())}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(_DRIVER_FIELDS, "unknown")
    return dict(zip(_DRIVER_FIELDS, map(str.strip, answer.split(",")), strict=True))


class Stopwatch:
    """Measures times as medians of several runs.

    Args:
        repeats: number of timed runs, after two that are not; 0 runs a call once without timing it.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.is_cuda = device.type == "cuda"

    def calls(self, calls: Sequence[Call]) -> float:
        """Returns the seconds of one call, with all calls recorded one after another in one CUDA graph.

        On a CPU the calls run one after another.
        """
        if not self.repeats:
            return self.once(calls[0])
        if not self.is_cuda:
            return self.once(lambda: [call() for call in calls]) / len(calls)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:  # to compile kernels, and to let libraries allocate memory
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        seconds = self.once(graph.replay) / len(calls)
        graph.reset()
        return seconds

    def once(self, call: Call) -> float:
        """Returns the seconds of one call, by events on the device."""
        if not self.repeats:
            call()
            return 1.0
        if not self.is_cuda:
            times = []
            for _ in range(self.repeats):
                start = perf_counter()
                call()
                times.append(perf_counter() - start)
            return median(times)
        for _ in range(2):
            call()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1000

    def rotation(self, bytes_of_one: float, most: int = _MOST_CALLS) -> int:
        """Returns how many sets of buffers a rotation needs so that the L2 cache never holds the next one."""
        if not self.is_cuda or not self.repeats:
            return 2
        l2 = torch.cuda.get_device_properties(self.device).L2_cache_size
        return int(min(max(-(-_COLD_FACTOR * l2 // bytes_of_one), 4), most))


def release() -> None:
    """Returns cached memory to the device."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int | None:
    """Returns the free memory of the device in bytes; None for a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
