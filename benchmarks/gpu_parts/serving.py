"""The part `serving`: a new prompt replaces every sequence that ends, so that steps mix prompts and decoding.

The first sequences end at evenly spread times, so that a run is in its steady state from the start: of B rows with
completions of n tokens, B / n end in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

from rwkv_batch.engine.engine import Engine
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.source import Pulled
from rwkv_batch.measure.bench import difference
from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.model import Model

from ..roofline import Card, Sizes, decode_seconds, prefill_seconds
from .context import Context
from .decode import Loaded
from .device import release
from .engines import other_backends, random_prompts, requests, serve, slot_bytes
from .record import Point

PROMPT_TOKENS = 4096
"""Tokens of a step besides one for each row, as in a job on a GPU."""
WINDOW_SECONDS = 4.0
WARM_STEPS = 24
"""Steps before those that are timed, besides those for the first prompts. One of them records a step."""
NUM_PROMPTS = 256
"""Number of different prompts, which a run takes in turn."""


@dataclass(frozen=True)
class Load:
    """A load of the engine.

    Args:
        rows: number of sequences at a time.
        prompt, completion: tokens of each.
        published: card → tokens/s that another engine reports for this load.
    """

    model: str
    rows: int
    prompt: int
    completion: int
    published: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} B={self.rows} {self.prompt}+{self.completion}"


PUBLISHED = {"H100": 28_600.0, "H200": 32_300.0}
"""Card → output tokens/s that rwkv-sglang reports for a 1.5B model and 384 sequences at a time.

Those are of a whole server with float16 weights. This part measures the engine alone, with bfloat16 weights, in its
steady state."""
LOADS = (
    Load("1.5B", 256, 128, 100),
    Load("1.5B", 384, 64, 256, PUBLISHED),
    Load("1.5B", 1024, 128, 100),
    Load("0.1B", 256, 128, 100),
    Load("0.1B", 1024, 128, 100),
)
STATES = ("float32", "float16")


def run(context: Context) -> list[str]:
    loaded: dict[str, Loaded] = {}
    for load in _loads(context):
        sizes = context.choose_models((load.model,))[load.model]
        loaded.setdefault(load.model, Loaded(context, sizes))
        for state in STATES[:1] if context.is_rehearsal else STATES:
            point = partial(_point, context, loaded[load.model], sizes, load, state)
            context.record.measure(f"{load.name} {state}", point)
            release()
    return _table(context.record.points)


def _loads(context: Context) -> tuple[Load, ...]:
    if context.is_rehearsal:
        return (Load("tiny", 3, 4, 3, PUBLISHED),)
    loads: list[Load] = []
    for model in context.asked_models or dict.fromkeys(load.model for load in LOADS):
        if context.is_dry:
            loads.append(Load(model, 256, 128, 4))
            continue
        own = [load for load in LOADS if load.model == model]
        rows = context.asked_batches or [load.rows for load in own] or [256]
        chosen = [load for load in own if load.rows in rows]
        there = [load.rows for load in chosen]
        loads += chosen + [Load(model, B, 128, 100) for B in rows if B not in there]
    return tuple(loads)


def stream(model: Model, load: Load) -> Iterator[Request]:
    """Yields requests without end. The first completions are shorter, each by a different number of tokens."""
    prompts = random_prompts(model, [load.prompt] * NUM_PROMPTS)
    for number in count():
        most = load.completion
        if number < load.rows:
            most = 1 + number * load.completion // load.rows
        (request,) = requests([prompts[number % NUM_PROMPTS]], most)
        yield replace(request, key=number, row=number)


@dataclass
class _Seen:
    """Counters and times at the first and the last timed step."""

    start: Any = None
    end: Any = None
    seconds: float = 0.0


def _point(context: Context, loaded: Loaded, sizes: Sizes, load: Load, state: str) -> Point:
    model = loaded.get(state)
    if lack := loaded.lack(slot_bytes(model) * load.rows):
        raise MemoryError(lack)
    engine = serve(model, load.rows, 8 if context.is_rehearsal else PROMPT_TOKENS)
    is_short = context.is_rehearsal or context.is_dry
    warm_steps = WARM_STEPS + load.rows * load.prompt // PROMPT_TOKENS
    seen = _serve(engine, load, *((2, 0.0) if is_short else (warm_steps, WINDOW_SECONDS)))
    found = difference(seen.end, seen.start)
    predicted = sequence_seconds(sizes, load, context.card, 4 if state == "float32" else 2)
    rate = found.completion_tokens / seen.seconds
    card = str(context.record.about["card"])
    published = next((value for name, value in load.published.items() if name in card), None)
    return {
        "B": load.rows,
        "steps": found.steps,
        "seconds": seen.seconds,
        "completion_tokens": found.completion_tokens,
        "prompt_tokens": found.prompt_tokens,
        "tokens_per_second": rate,
        "all_tokens_per_second": (found.completion_tokens + found.prompt_tokens) / seen.seconds,
        "recorded_share": found.recorded_steps / found.steps,
        "share_of_rows": found.row_steps / found.steps / load.rows,
        "host_wait_share": found.wait_seconds / seen.seconds,
        "predicted_tokens_per_second": load.completion / predicted,
        "share_of_predicted": rate * predicted / load.completion,
        "published_tokens_per_second": published,
        "other_backends": other_backends(model),
    }


def _serve(engine: Engine, load: Load, warm_steps: int, seconds: float) -> _Seen:
    """Serves for so many seconds, and for at least two steps and one completion."""
    seen, start = _Seen(), 0.0
    completions = engine.generate(Pulled(stream(engine.model, load)))
    for _ in completions:
        now = perf_counter()
        if seen.start is None:
            has_recorded = engine.stats.recorded_steps > 0 or engine.stats.steps >= 2 * warm_steps
            if engine.stats.steps >= warm_steps and has_recorded:
                seen.start, start = replace(engine.stats), now
        elif now - start >= seconds and engine.stats.steps > seen.start.steps + 1:
            seen.end, seen.seconds = replace(engine.stats), now - start
            break
    completions.close()
    if engine.pool.num_slots < load.rows:
        raise MemoryError(f"the engine went on with {engine.pool.num_slots} of {load.rows} rows")
    return seen


def sequence_seconds(sizes: Sizes, load: Load, card: Card, state_number: int) -> float:
    """Predicts the least seconds of a sequence: its share of decode steps, and of packed prompts."""
    decoding = load.completion * decode_seconds(sizes, load.rows, card, state_number) / load.rows
    packed = max(PROMPT_TOKENS // load.prompt, 1)
    return decoding + prefill_seconds(sizes, packed, load.prompt, card) / packed


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [
            name,
            f"{point['tokens_per_second']:,.0f}",
            f"{point['all_tokens_per_second']:,.0f}",
            f"{1000 * point['seconds'] / point['steps']:.2f}",
            f"{point['recorded_share']:.0%}",
            f"{point['share_of_rows']:.0%}",
            f"{point['share_of_predicted']:.0%}",
            f"{point['published_tokens_per_second']:,.0f}" if point["published_tokens_per_second"] else "",
        ]
        for name, point in points.items()
    ]
    header = [
        "serving",
        "new tokens/s",
        "all tokens/s",
        "ms",
        "recorded",
        "rows in use",
        "of limit",
        "published (fp16, server)",
    ]
    return format_lines(header, rows)
