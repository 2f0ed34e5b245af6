"""Probes of the machine's speed: matrix products, copies and reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch

from . import native_probes

SIDE, SMALL_SIDE = 1536, 192
COPY_BYTES = 256 << 20
SECONDS, LEAST_RUNS = 0.3, 4
"""Seconds of each probe, and its least number of runs. The fastest run counts."""

MATRIX_UNITS = {"float32": "GFLOP/s", "bfloat16": "GFLOP/s", "int8": "Gop/s"}
COPY, READ = "copy", "read"

Peaks = dict[str, float]
"""Probe → rate. float32, bfloat16, int8: billions of operations a second in a large square product, 0 where torch has
none; int8 also in a loop of the native kernels' instruction, whichever is faster. copy: GB/s, read and written. read:
GB/s of all threads together."""


def peaks() -> Peaks:
    """Runs all probes one after another, with torch's number of threads."""
    found = {name: _products(name) for name in MATRIX_UNITS}
    threads = torch.get_num_threads()
    found["int8"] = max(found["int8"], native_probes.int8_rate(threads))
    return {**found, COPY: _copy(), READ: native_probes.read_rate(threads)}


def say(found: Peaks) -> str:
    """Formats probes as one line."""
    words = [f"{name} {found[name]:.0f} {unit}" for name, unit in MATRIX_UNITS.items()]
    return f"products {', '.join(words)}; copy {found[COPY]:.1f} GB/s, read {found[READ]:.1f} GB/s"


def _products(name: str) -> float:
    """Measures products of large matrices, or of small ones on a processor that would take too long for the large."""
    try:
        rate = _product_rate(name, SMALL_SIDE)
        return rate if 2 * SIDE**3 / rate / 1e9 > SECONDS else _product_rate(name, SIDE)
    except RuntimeError:
        return 0.0


def _product_rate(name: str, side: int) -> float:
    if name == "int8":
        integers = torch.randint(-100, 100, (side, side), dtype=torch.int8)
        return 2 * side**3 / _best(partial(torch._int_mm, integers, integers)) / 1e9
    x = torch.randn(side, side).to(getattr(torch, name))
    return 2 * side**3 / _best(partial(torch.mm, x, x)) / 1e9


def _copy() -> float:
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best(lambda: target.copy_(source)) / 1e9


def _best(run: Callable[[], object]) -> float:
    """Returns the seconds of the fastest run. The first run does not count."""
    run()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < LEAST_RUNS:
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)
