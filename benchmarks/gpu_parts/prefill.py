"""The part `prefill`: packed prompts through the whole engine. Each row asks for one token: one step, one sample."""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter

from rwkv_batch.engine.source import Pulled
from rwkv_batch.measure.table import format_lines

from ..roofline import Sizes, prefill_seconds
from .context import Context
from .decode import Loaded
from .device import release
from .engines import random_prompts, requests, serve
from .record import Point

SHAPES = ((1, 8192), (8, 1024), (64, 128))
"""Number of rows, and tokens of each row."""
REPEATS = 7


def run(context: Context) -> list[str]:
    models = context.models
    for count, (name, sizes) in enumerate(models.items()):
        loaded = Loaded(context, sizes)
        with context.record.box(context.record.seconds_left / (len(models) - count)):
            if context.is_dry:
                context.record.measure(name, partial(_compile, context, loaded, sizes))
                continue
            for rows, length in ((2, 3),) if context.is_rehearsal else SHAPES:
                what = f"{name} {rows} x {length}"
                context.record.measure(what, partial(_point, context, loaded, sizes, rows, length))
                release()
        del loaded
        release()
    return _table(context.record.points)


def _compile(context: Context, loaded: Loaded, sizes: Sizes) -> Point:
    _point(context, loaded, sizes, 2, 2 if context.is_rehearsal else 600)
    return {}


def _point(context: Context, loaded: Loaded, sizes: Sizes, num_rows: int, length: int) -> Point:
    model = loaded.get("float32")
    engine = serve(model, num_rows, num_rows * length)
    seconds, steps = [], 0
    repeats = 1 if context.is_rehearsal or context.is_dry else REPEATS
    for number in range(repeats + 1):  # the first run is a warm-up
        prompts = requests(random_prompts(model, [length] * num_rows, seed=number), 1)
        before, start = engine.stats.steps, perf_counter()
        completions = list(engine.generate(Pulled(prompts)))
        seconds.append(perf_counter() - start)
        steps = engine.stats.steps - before
        assert len(completions) == num_rows
        if context.is_rehearsal:
            break
    took, tokens = median(seconds[1:] or seconds), num_rows * length
    predicted = prefill_seconds(sizes, num_rows, length, context.card)
    return {
        "seconds": took,
        "all_seconds": seconds,
        "steps": steps,
        "tokens_per_second": tokens / took,
        "predicted_tokens_per_second": tokens / predicted,
        "share_of_predicted": predicted / took,
    }


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [
            name,
            f"{point['tokens_per_second']:,.0f}",
            f"{1000 * point['seconds']:.1f}",
            f"{point['share_of_predicted']:.0%}",
            str(point["steps"]),
        ]
        for name, point in points.items()
        if point
    ]
    return format_lines(["prefill", "tokens/s", "ms", "of limit", "steps"], rows)
