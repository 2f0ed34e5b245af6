"""The part `decode`: the whole engine decodes, with scheduler, sampler and recorded steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.model import Model

from ..roofline import Sizes, decode_seconds
from .context import Context
from .device import free_bytes, release
from .engines import BACKEND, decode, load, other_backends, serve, slot_bytes, with_state
from .random_model import random_checkpoint
from .record import Point

BATCHES = (256, 1024, 1, 64, 16, 4096)
"""In the order of importance, in case time runs out."""
INVARIANT_MODEL, INVARIANT_BATCHES = "1.5B", (256, 1024)
ROUNDS = 2
WINDOW_SECONDS = 1.0
"""Approximate time of a round."""
MEMORY_SHARE = 0.9


def run(context: Context) -> list[str]:
    models = context.models
    for count, (name, sizes) in enumerate(models.items()):
        with context.record.box(context.record.seconds_left / (len(models) - count)):
            _run_model(context, name, sizes)
        release()
    return [] if context.is_dry else _table(context.record.points)


def _run_model(context: Context, name: str, sizes: Sizes) -> None:
    loaded = Loaded(context, sizes)
    if context.is_dry:
        for variant in _variants(context, name, INVARIANT_BATCHES[0]):
            context.record.measure(f"{name} {variant}", partial(_compile, context, loaded, variant))
        return
    for B in context.choose_batches(BATCHES):
        context.record.measure(f"{name} B={B}", partial(_point, context, loaded, sizes, _variants(context, name, B), B))
        release()


def _variants(context: Context, name: str, B: int) -> list[str]:
    """Lists the variants to measure for a model and a batch size."""
    is_priced = context.is_rehearsal or (name == INVARIANT_MODEL and B in INVARIANT_BATCHES)
    return ["float32", "float16", *(["batch_invariant"] if is_priced else [])]


def _compile(context: Context, loaded: Loaded, variant: str) -> Point:
    """Runs decode steps of several batch sizes, which compiles all kernels."""
    for B in context.choose_batches((1, 16, 64, 256, 300)):
        decode(serve(loaded.get(variant), B), 1, 0)
        release()
    return {}


class Loaded:
    """Variants of one model, loaded on first use."""

    def __init__(self, context: Context, sizes: Sizes, backend: str = BACKEND) -> None:
        self._context, self._sizes, self._backend = context, sizes, backend
        self._models: dict[bool, Model] = {}

    def get(self, variant: str) -> Model:
        is_invariant = variant == "batch_invariant"
        if is_invariant not in self._models:
            checkpoint = random_checkpoint(self._sizes, self._context.device)
            self._models[is_invariant] = load(
                self._context, checkpoint, backend=self._backend, batch_invariant=is_invariant
            )
        model = self._models[is_invariant]
        return with_state(model, "float16") if variant == "float16" else model

    def lack(self, num_bytes: int) -> str:
        """Describes a lack of memory for so many bytes besides the weights; empty if there is enough."""
        free = free_bytes(self._context.device)
        if free is None or num_bytes <= MEMORY_SHARE * free:
            return ""
        return f"needs {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"


def _point(context: Context, loaded: Loaded, sizes: Sizes, variants: Sequence[str], B: int) -> Point:
    """Measures all variants in interleaved rounds; one variant after the other if memory is short."""
    models, left_out = {}, {}
    for variant in variants:
        model = loaded.get(variant)
        if lack := loaded.lack(B * slot_bytes(model)):
            left_out[variant] = lack
        else:
            models[variant] = model
    together = not loaded.lack(B * sum(slot_bytes(model) for model in models.values()))
    number = {"float16": 2}
    predicted = {name: decode_seconds(sizes, B, context.card, number.get(name, 4)) for name in models}
    lengths = {name: _length(context, predicted[name]) for name in models}
    rounds = 1 if context.is_rehearsal or context.is_brief else ROUNDS
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    if together:
        engines = {name: serve(model, B) for name, model in models.items()}
        for turn in range(rounds):
            for name in list(engines)[:: -1 if turn % 2 else 1]:
                found[name].append(decode(engines[name], *lengths[name]))
    else:
        for name, model in models.items():
            engine = serve(model, B)
            found[name] = [decode(engine, *lengths[name]) for _ in range(rounds)]
            del engine
            release()
    return {
        "B": B,
        "interleaved": together,
        "left_out": left_out,
        "other_backends": {name: other_backends(model) for name, model in models.items()},
        "rounds": found,
        "variants": {name: _summary(runs, B, predicted[name]) for name, runs in found.items()},
        "ratios_to_float32": _ratios(found),
    }


def _length(context: Context, predicted: float) -> tuple[int, int]:
    """Returns the number of timed steps, and of steps with events."""
    if context.is_rehearsal:
        return 1, 1
    steps = int(min(max(WINDOW_SECONDS / predicted, 12), 300))
    return steps, min(steps, 30)


def _summary(runs: list[dict[str, Any]], B: int, predicted: float) -> dict[str, Any]:
    """Returns the medians of the rounds."""

    def middle(field: str) -> float | None:
        values = [run[field] for run in runs if field in run]
        return median(values) if values else None

    step = middle("step_seconds")
    assert step is not None
    return {
        "step_seconds": step,
        "tokens_per_second": B / step,
        "predicted_tokens_per_second": B / predicted,
        "share_of_predicted": predicted / step,
        "replay_seconds": middle("replay_seconds"),
        "outside_share": middle("outside_share"),
        "host_share": (middle("host_seconds") or 0.0) / step,
        "peak_bytes": middle("peak_bytes"),
    }


def _ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Returns variant → tokens/s ÷ tokens/s of the float32 state in the same round."""
    base = found.get("float32", [])
    return {
        name: [one["step_seconds"] / own["step_seconds"] for own, one in zip(runs, base, strict=False)]
        for name, runs in found.items()
        if name != "float32"
    }


def _table(points: dict[str, Point]) -> list[str]:
    rows = []
    for name, point in points.items():
        for variant, found in point["variants"].items():
            ratios = point["ratios_to_float32"].get(variant)
            rows.append(
                [
                    f"{name} {variant}",
                    f"{found['tokens_per_second']:,.0f}",
                    f"{1000 * found['step_seconds']:.2f}",
                    f"{found['share_of_predicted']:.0%}",
                    _percent(found["outside_share"]),
                    _percent(found["host_share"]),
                    f"{median(ratios):.2f}" if ratios else "",
                    f"{found['peak_bytes'] / 1e9:.1f}" if found["peak_bytes"] else "",
                ]
            )
        rows += [[f"{name} {variant}: {why}", *[""] * 7] for variant, why in point["left_out"].items()]
    header = ["decode", "tokens/s", "ms", "of limit", "outside replay", "host busy", "x float32", "GB"]
    return format_lines(header, rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def best_rate(decode_points: dict[str, Any], model: str, state: str, most_rows: int) -> float | None:
    """Returns the tokens/s of the largest measured batch of at most `most_rows` rows."""
    found = {
        point["B"]: point["variants"][state]["tokens_per_second"]
        for name, point in decode_points.items()
        if name.split()[0] == model and state in point["variants"] and point["B"] <= most_rows
    }
    return found[max(found)] if found else None
