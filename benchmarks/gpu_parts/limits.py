"""The part `limits`: bandwidth, peaks and latencies of the card, to which other parts compare their figures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from rwkv_batch.measure.table import format_lines

from .context import Context
from .rate_recurrences import prompts
from .record import Point


@triton.jit
def _touch(p_x):  # type: ignore[no-untyped-def]
    tl.store(p_x, tl.load(p_x) + 1.0)


@triton.jit
def _wait_and_touch(p_x):  # type: ignore[no-untyped-def]
    tl.extra.cuda.gdc_wait()
    tl.store(p_x, tl.load(p_x) + 1.0)


def run(context: Context) -> list[str]:
    measure = context.record.measure
    measure("copy", lambda: _copy(context))
    measure("bfloat16 product", lambda: _product(context, _bfloat16))
    measure("int8 product", lambda: _product(context, _int8))
    measure("launch in a graph", lambda: _launch(context, in_graph=True))
    measure("launch without a graph", lambda: _launch(context, in_graph=False))
    measure("recurrence, one row", lambda: _token(context))
    if context.device.type == "cuda":
        measure("launch in a graph, programmatic", lambda: _launch(context, in_graph=True, programmatic=True))
    return _table(context.record.points)


def _copy(context: Context) -> Point:
    size = 1 << (20 if context.is_rehearsal else 31)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    seconds = context.stopwatch.once(lambda: target.copy_(source))
    assert torch.equal(target[-1000:], source[-1000:])
    return {"bytes": 2 * size, "seconds": seconds, "bytes_per_second": 2 * size / seconds}


def _bfloat16(size: int, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return lambda: a @ b


def _int8(size: int, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randint(-128, 127, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def _product(context: Context, make: Callable[[int, torch.device], Callable[[], Tensor]]) -> Point:
    size = 64 if context.is_rehearsal else 8192
    seconds = context.stopwatch.once(make(size, context.device))
    return {"size": size, "seconds": seconds, "operations_per_second": 2 * size**3 / seconds}


def _launch(context: Context, in_graph: bool, programmatic: bool = False) -> Point:
    count = 4 if context.is_rehearsal else 1000
    x = torch.ones(1, device=context.device)
    options = {"num_warps": 1} | ({"launch_pdl": True} if programmatic else {})
    kernel = _wait_and_touch if programmatic else _touch

    def touch() -> None:
        kernel[(1,)](x, **options)

    def touch_all() -> None:
        for _ in range(count):
            touch()

    if in_graph:
        seconds = context.stopwatch.calls([touch] * count)
    else:
        seconds = context.stopwatch.once(touch_all) / count
    return {"seconds": seconds, "launches": count}


def _token(context: Context) -> Point:
    """Measures the seconds of one token in one layer's recurrence with one row: each token waits for the one before."""
    if why := context.broken("wkv7", "triton", "bfloat16", "float32"):
        raise RuntimeError(f"not tried: {why}")
    shape = (3, 1, 16) if context.is_rehearsal else (4096, 32, 64)
    point = prompts(context, 1, *shape, "triton")
    return {"tokens": shape[0], "seconds": point["seconds_per_token_of_a_row"]}


_UNITS = {
    "bytes_per_second": (1e12, "TB/s"),
    "operations_per_second": (1e12, "T operations/s"),
    "seconds": (1e-6, "us"),
}


def _table(points: dict[str, Point]) -> list[str]:
    rows = []
    for name, point in points.items():
        field = next(field for field in _UNITS if field in point)
        scale, unit = _UNITS[field]
        rows.append([name, f"{point[field] / scale:.3g} {unit}"])
    return format_lines(["limit", "measured"], rows)
