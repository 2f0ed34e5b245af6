"""The part `profile`: kernels of a step by name, idle times of the device, and steps that wait for the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.measure.table import format_lines

from ..roofline import Sizes
from .context import Context
from .decode import Loaded
from .device import release
from .engines import engine_backend, random_prompts, requests, serve, watched
from .record import Point
from .serving import PROMPT_TOKENS, WARM_STEPS, Load, stream

NUM_ROWS = 256
PROFILED_STEPS = {"decode": 10, "mixed": 20}
SHOWN = 12
"""The largest number of kernels in the table."""
LONG_GAP = 10.0
"""In microseconds. Shorter gaps are those between two launches."""


def run(context: Context) -> list[str]:
    for name, sizes in context.choose_models(("1.5B", "0.1B")).items():
        measure, loaded = context.record.measure, Loaded(context, sizes, engine_backend(context))
        for kind in ("mixed", "decode"):
            measure(f"{name} {kind}", partial(_profiled, context, loaded, sizes, kind))
        for kind in ("decode", "mixed"):
            measure(f"{name} waits, {kind}", partial(_waits, context, loaded, kind))
        del loaded
        release()
    return _table(context.record.points)


def _rows(context: Context) -> int:
    return 2 if context.is_rehearsal else NUM_ROWS


def _engine(context: Context, loaded: Loaded) -> Engine:
    return serve(loaded.get("float32"), _rows(context), 8 if context.is_rehearsal else PROMPT_TOKENS)


def _steps(context: Context, kind: str) -> tuple[int, int]:
    """Returns the first watched step, and the number of watched steps."""
    if context.is_rehearsal:
        return 2, 2
    first = WARM_STEPS + (NUM_ROWS * _load(context).prompt // PROMPT_TOKENS if kind == "mixed" else 0)
    return first, 2 if context.is_dry else PROFILED_STEPS[kind]


def _load(context: Context) -> Load:
    """Returns the load of mixed steps: prompts arrive while other rows decode."""
    return Load("tiny", 2, 4, 3) if context.is_rehearsal else Load("", NUM_ROWS, 128, 100)


def _requests(context: Context, engine: Engine, kind: str, num_steps: int) -> Iterable[Request]:
    """Makes requests for at least so many steps: all slots decode, or prompts arrive in most steps."""
    if kind == "mixed":
        return stream(engine.model, _load(context))
    return requests(random_prompts(engine.model, [1] * _rows(context)), num_steps + 2)


def _profiled(context: Context, loaded: Loaded, sizes: Sizes, kind: str) -> Point:
    """Profiles some steps with torch's profiler."""
    engine = _engine(context, loaded)
    first, count = _steps(context, kind)
    last = first + count
    is_cuda = context.device.type == "cuda"
    profiler = torch.profiler.profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU])
    recorded = []

    def before(number: int) -> None:
        if number not in (first, last):
            return
        if is_cuda:
            torch.cuda.synchronize()
        recorded.append(engine.stats.recorded_steps)
        (profiler.start if number == first else profiler.stop)()

    _run_steps(engine, _requests(context, engine, kind, last), last + 1, before)
    events = [event for event in profiler.events() or [] if event.device_type == DeviceType.CUDA]
    return {"recorded_share": (recorded[1] - recorded[0]) / count} | _describe(events, count, sizes)


def _run_steps(
    engine: Engine,
    made: Iterable[Request],
    num_steps: int,
    before: Callable[[int], None],
    after: Callable[[int], None] = lambda _: None,
) -> None:
    """Serves requests for so many steps.

    Args:
        before, after: functions called around each step with its number, from 0.

    Raises:
        AssertionError: the requests ended earlier.
    """
    with watched(engine, before, after) as steps:
        completions = engine.generate(Pulled(made))
        for _ in completions:
            if len(steps.ends) >= num_steps:
                break
        completions.close()
    if len(steps.ends) < num_steps:
        raise AssertionError(f"the run had {len(steps.ends)} steps, expected {num_steps}")


def _describe(events: Sequence[Any], num_steps: int, sizes: Sizes) -> Point:
    """Counts the kernels of a step and their times in microseconds."""
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in events:
        counts[event.name] += 1
        times[event.name] += event.time_range.elapsed_us()
    kernels = sum(count for name, count in counts.items() if not name.startswith(("Memcpy", "Memset")))
    busy, span = _busy([(event.time_range.start, event.time_range.end) for event in events])
    return {
        "steps": num_steps,
        "kernels_per_step": kernels / num_steps,
        "kernels_per_layer": kernels / num_steps / sizes.L,
        "copies_per_step": (sum(counts.values()) - kernels) / num_steps,
        "busy_microseconds_per_step": busy / num_steps,
        "span_microseconds_per_step": span / num_steps,
        "idle_share": 1 - busy / span if span else None,
        "long_gaps": _long_gaps(events, num_steps),
        "by_kernel": {
            name: {"per_step": counts[name] / num_steps, "microseconds_per_step": time / num_steps}
            for name, time in times.most_common()
        },
    }


def _busy(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Returns the time in which at least one kernel runs, and the time from the first start to the last end."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return busy, (reached - min(start for start, _ in intervals)) if intervals else 0.0


def _long_gaps(events: Sequence[Any], num_steps: int) -> dict[str, dict[str, float]]:
    """Returns idle times of the device by the kernel that ends them, the longest first."""
    counts: Counter[str] = Counter()
    times: Counter[str] = Counter()
    reached = float("inf")
    for event in sorted(events, key=lambda event: event.time_range.start):
        gap = event.time_range.start - reached
        if gap > LONG_GAP:
            counts[event.name] += 1
            times[event.name] += gap
        reached = event.time_range.end if reached == float("inf") else max(event.time_range.end, reached)
    return {
        name: {"per_step": counts[name] / num_steps, "microseconds_per_step": time / num_steps}
        for name, time in times.most_common()
    }


def _waits(context: Context, loaded: Loaded, kind: str) -> Point:
    """Runs steps in which torch reports every operation that waits for the device; counts the reports.

    Admission, between steps, is watched too.
    """
    engine = _engine(context, loaded)
    first, count = _steps(context, kind)
    last = first + count
    is_cuda = context.device.type == "cuda"
    reached = 0

    def mode(name: str) -> None:
        if is_cuda:
            torch.cuda.set_sync_debug_mode(name)

    def before(number: int) -> None:
        nonlocal reached
        reached = number
        mode("error" if first <= number < last else "default")

    why = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made = _requests(context, engine, kind, last)
            _run_steps(engine, made, last, before, lambda number: mode("warn" if first <= number < last else "default"))
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            why = f"step {reached} waits: {str(error)[:200]}"
        finally:
            mode("default")
    between = Counter(str(one.message)[:120] for one in caught if "synchroniz" in str(one.message))
    return {"ok": not why, "why": why, "steps": min(reached + 1, last) - first, "waits_between_steps": dict(between)}


def _table(points: dict[str, Point]) -> list[str]:
    rows, details = [], []
    for name, point in points.items():
        if "by_kernel" not in point:
            between = sum(point["waits_between_steps"].values())
            details.append(f"{name}: {point['steps']} steps, {between} waits between them")
            continue
        idle = "" if point["idle_share"] is None else f"{point['idle_share']:.1%}"
        numbers = ("kernels_per_step", "kernels_per_layer", "copies_per_step")
        times = (f"{point[f'{what}_microseconds_per_step']:,.0f}" for what in ("busy", "span"))
        recorded = f"{point['recorded_share']:.0%}"
        rows.append([name, recorded, *(f"{point[field]:.1f}" for field in numbers), *times, idle])
        details += _by_kernel(f"{name}: kernel", point["by_kernel"])
        details += _by_kernel(f"{name}: the device idles before", point["long_gaps"])
    header = [
        "profile",
        "recorded",
        "kernels a step",
        "/ layer",
        "copies",
        "us busy",
        "us in all",
        "idle (under the profiler)",
    ]
    return [*format_lines(header, rows), *details]


def _by_kernel(title: str, found: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        [f"  {name[:60]}", f"{one['per_step']:.1f}", f"{one['microseconds_per_step']:,.1f}"]
        for name, one in list(found.items())[:SHOWN]
    ]
    return format_lines([title, "a step", "us a step"], lines) if lines else []
