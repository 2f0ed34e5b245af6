"""What the device does in a step: kernels by name, how long it idles, and that no step waits for it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import Request

from ..roofline import Sizes
from .columns import format_columns
from .context import Context
from .device import release
from .random_model import random_checkpoint
from .record import Point
from .engines import load, random_prompts, requests, serve, watched

NUM_ROWS = 256
PROFILED_STEPS = 10
SHOWN = 12
"""Kernels in the table."""
PROMPT_TOKENS = 512


def run(context: Context) -> list[str]:
    for name, sizes in list(context.models.items())[:2]:
        measure = context.record.measure
        measure(f"{name} decode", partial(_decode, context, sizes))
        measure(f"{name} mixed", partial(_mixed, context, sizes))
        for kind in ("decode", "mixed"):
            measure(f"{name} waits, {kind}", partial(_waits, context, sizes, kind))
        release()
    return _table(context.record.points)


def _rows(context: Context) -> int:
    return 2 if context.is_rehearsal else NUM_ROWS


def _engine(context: Context, sizes: Sizes) -> Engine:
    model = load(context, random_checkpoint(sizes, context.device))
    return serve(model, _rows(context), 4 if context.is_rehearsal else PROMPT_TOKENS)


def _decoding(context: Context, engine: Engine, num_steps: int) -> list[Request]:
    """All slots decode after the first step."""
    return requests(random_prompts(engine.model, [1] * _rows(context)), num_steps)


def _mixing(context: Context, engine: Engine, num_steps: int) -> list[Request]:
    """Prompts come in while other rows decode, for as long as `num_steps` steps."""
    lengths = [1 + i % 2 for i in range(3)] if context.is_rehearsal else [1 + 37 * i % 700 for i in range(NUM_ROWS * 2)]
    made = []
    for i, prompt in enumerate(random_prompts(engine.model, lengths)):
        made += requests([prompt], 2 + i % 3 if context.is_rehearsal else 8 + 5 * i % 40)
    return made


def _steps(context: Context) -> tuple[int, int]:
    """The first step that is profiled, and how many are."""
    return (1, 1) if context.is_rehearsal else (8, 2 if context.is_dry else PROFILED_STEPS)


def _decode(context: Context, sizes: Sizes) -> Point:
    engine = _engine(context, sizes)
    first, count = _steps(context)
    return _profile(context, engine, _decoding(context, engine, first + count + 2), sizes)


def _mixed(context: Context, sizes: Sizes) -> Point:
    engine = _engine(context, sizes)
    return _profile(context, engine, _mixing(context, engine, sum(_steps(context))), sizes)


def _profile(context: Context, engine: Engine, made: list[Request], sizes: Sizes) -> Point:
    first, count = _steps(context)
    is_cuda = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    profiler = torch.profiler.profile(activities=activities)

    def before(number: int) -> None:
        if number in (first, first + count) and is_cuda:
            torch.cuda.synchronize()
        if number == first:
            profiler.start()
        elif number == first + count:
            profiler.stop()

    with watched(engine, before) as steps:
        for _ in engine.generate(made):
            pass
    if len(steps.ends) <= first + count:
        raise AssertionError(f"the run had {len(steps.ends)} steps, too few to profile {count} from step {first} on")
    events = [event for event in profiler.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
    return _describe(events, count, sizes)


def _describe(events: Sequence[Any], num_steps: int, sizes: Sizes) -> Point:
    """Counts and times of what ran on the device; times in microseconds."""
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
        "by_kernel": {
            name: {"per_step": counts[name] / num_steps, "microseconds_per_step": time / num_steps}
            for name, time in times.most_common()
        },
    }


def _busy(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Time in which at least one of them runs, and time from the first start to the last end."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return busy, (reached - min(start for start, _ in intervals)) if intervals else 0.0


def _waits(context: Context, sizes: Sizes, kind: str) -> Point:
    """Every step but the first ones, in which an operation that would wait for the device is an error.

    Giving slots to requests, between steps, is watched too: what waits there is counted.
    """
    engine = _engine(context, sizes)
    first, count = _steps(context)
    made = (_decoding if kind == "decode" else _mixing)(context, engine, first + 3 * count)
    is_cuda = context.device.type == "cuda"

    def mode(name: str) -> None:
        if is_cuda:
            torch.cuda.set_sync_debug_mode(name)

    why = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = watched(
            engine,
            before=lambda number: mode("error" if number >= first else "default"),
            after=lambda number: mode("warn" if number >= first else "default"),
        )
        with watch as steps:
            try:
                for _ in engine.generate(made):
                    pass
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                why = f"step {len(steps.ends)} waits: {str(error)[:200]}"
            finally:
                mode("default")
    between = Counter(str(one.message)[:120] for one in caught if "synchroniz" in str(one.message))
    return {"ok": not why, "why": why, "steps": len(steps.ends) - first, "waits_between_steps": dict(between)}


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
        rows.append([name, *(f"{point[field]:.1f}" for field in numbers), *times, idle])
        if name.endswith("decode"):
            kernels = list(point["by_kernel"].items())[:SHOWN]
            lines = [
                [f"  {kernel[:60]}", f"{one['per_step']:.0f}", f"{one['microseconds_per_step']:,.1f}"]
                for kernel, one in kernels
            ]
            details += format_columns([f"{name}: kernel", "a step", "us a step"], lines)
    header = ["profile", "kernels a step", "/ layer", "copies", "us busy", "us in all", "idle"]
    return [*format_columns(header, rows), *details]
