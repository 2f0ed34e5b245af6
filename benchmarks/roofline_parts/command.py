"""The command `python -m benchmarks.roofline`: its options and its tables."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from rwkv_batch.measure.table import format_lines
from rwkv_batch.roofline.cards import CARDS, H100, Card, with_limits
from rwkv_batch.roofline.jobs import job_rate
from rwkv_batch.roofline.predict import Prediction, predict
from rwkv_batch.roofline.steps import Step, record

from ..roofline import MODELS, Sizes
from . import measured
from .needed import memory_needed, necessary_bytes

STATES = {"float32": torch.float32, "float16": torch.float16}
BATCHES = (1, 16, 64, 256, 1024)
PROMPTS = ((1, 8192), (8, 1024), (64, 128))
DOCUMENTS = ((1, 8192, "1.5B"), (1, 8192, "7.2B"), (8, 2048, "0.1B"), (8, 2048, "1.5B"), (8, 2048, "7.2B"))
PARTS = ("decode", "mixed", "prefill", "documents", "bars", "jobs", "measured")
MIXED = 3
"""Prompts of 128 tokens in the mixed steps of the table."""
TO_BEAT = (
    ("h100", "1.5B", 28_600, "rwkv-sglang"),
    ("h200", "1.5B", 32_300, "rwkv-sglang"),
    ("rtx5090", "7.2B", 9_900, "vllm-rwkv"),
)
"""Card, model, and the tokens/s of a whole server with prompts of 64 and completions of 256 tokens, as published."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="tables to print (all)")
    parser.add_argument("--card", choices=CARDS, default="h100", help="card (h100)")
    parser.add_argument("--limits", type=Path, help="limits.json of `benchmarks.gpu`: the card's own figures")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models (all)")
    parser.add_argument("--quantization", choices=("int8", "w8a8"), help="weight format (bfloat16)")
    options = parser.parse_args(arguments)
    card = CARDS[options.card]
    if options.limits:
        card = with_limits(card, options.limits)
    print(f"predicted for {card.name}:")
    print("\n".join(format_lines(["figure", "value", "source"], _figures(card))))
    for part in options.parts:
        print(f"\n{part}")
        print("\n".join(_table(part, card, options.models, options.quantization)))


def _figures(card: Card) -> list[list[str]]:
    return [[name, f"{getattr(card, name):.4g}", source] for name, source in card.sources.items()]


def _table(part: str, card: Card, models: Sequence[str], quantization: str | None) -> list[str]:
    if part == "decode":
        return _decode(card, models, quantization)
    if part == "mixed":
        return _mixed(card, models, quantization)
    if part == "prefill":
        return _prefill(card, models, quantization)
    if part == "documents":
        return _documents(card)
    if part == "bars":
        return _bars(card)
    return _jobs() if part == "jobs" else _measured()


def _rate(step: Step, num_tokens: int, card: Card) -> str:
    """Tokens/s and milliseconds of a recorded step, or "-" where it does not fit into memory."""
    assert isinstance(step.sizes, Sizes)
    if memory_needed(step.sizes, step.num_rows, step.state_dtype.itemsize) > card.memory:
        return "-"
    seconds = predict(record(step), card).recorded
    return f"{num_tokens / seconds:,.0f} ({1000 * seconds:.2f})"


def _variants(models: Iterable[str], quantization: str | None) -> Iterable[tuple[str, Step]]:
    for model in models:
        for state, dtype in STATES.items():
            for invariant in (False, True):
                name = f"{model} {state}{', batch_invariant' * invariant}"
                step = Step(MODELS[model], 1, state_dtype=dtype, batch_invariant=invariant, quantization=quantization)
                yield name, step


def _decode(card: Card, models: Sequence[str], quantization: str | None) -> list[str]:
    rows = [
        [name, *(_rate(_with(step, B), B, card) for B in BATCHES)] for name, step in _variants(models, quantization)
    ]
    return format_lines(["tokens/s (ms of a step)", *(f"B={B}" for B in BATCHES)], rows)


def _mixed(card: Card, models: Sequence[str], quantization: str | None) -> list[str]:
    rows = [
        [name, *(_rate(_with(step, B - MIXED, (128,) * MIXED), B, card) for B in (256, 1024))]
        for name, step in _variants(models, quantization)
    ]
    return format_lines([f"sampled tokens/s (ms), {MIXED} prompts of 128", "256 rows", "1024 rows"], rows)


def _prefill(card: Card, models: Sequence[str], quantization: str | None) -> list[str]:
    rows = [
        [name, *(_rate(_with(step, 0, (length,) * count), count * length, card) for count, length in PROMPTS)]
        for name, step in _variants(models, quantization)
    ]
    return format_lines(["tokens/s (ms)", *(f"{count} x {length}" for count, length in PROMPTS)], rows)


def _documents(card: Card) -> list[str]:
    """Steps of jobs that read long documents: the recurrence, and everything else."""
    rows = []
    for count, length, model in DOCUMENTS:
        found = predict(record(Step(MODELS[model], 0, (length,) * count, batch_invariant=True)), card)
        recurrence = sum(part.seconds for part in found.parts if part.launch.work.is_recurrence)
        others = found.recorded - recurrence
        rows.append([f"{count} x {length}", model, f"{1000 * others:.1f}", f"{1000 * recurrence:.1f}"])
    return format_lines(["documents", "model", "other work, ms", "recurrence, ms"], rows)


def _with(step: Step, decoding: int, prompts: tuple[int, ...] = ()) -> Step:
    return Step(step.sizes, decoding, prompts, step.state_dtype, step.batch_invariant, step.quantization)


def launches_of_a_layer(found: Prediction, layer: int = 1) -> int:
    """Number of launches of one layer; layer 0 has no value residual."""
    return sum(part.launch.layer == layer for part in found.parts)


def most_needless(found: Prediction, count: int = 4) -> list[tuple[str, int]]:
    """Kernels that move the most bytes of memory besides large matrices and states, with those bytes."""
    totals: Counter[str] = Counter()
    for part in found.parts:
        launch = part.launch
        written = {piece.memory for piece in launch.writes}
        matrices = [p for p in launch.reads[1:] if p.memory not in written] if launch.work.is_product else []
        weights = sum(p.num_bytes for p in matrices)
        states = sum(p.num_bytes for p in (*launch.reads, *launch.writes) if p.is_pool)
        totals[launch.name] += max(round(part.moved.memory) - weights - states, 0)
    return totals.most_common(count)


def _bars(card: Card) -> list[str]:
    rows, details = [], []
    for model in ("0.1B", "1.5B", "7.2B"):
        for B in (256, 1024):
            for invariant in (False, True):
                found = predict(record(Step(MODELS[model], B, batch_invariant=invariant)), card)
                ratio = found.memory_bytes / necessary_bytes(MODELS[model], B)
                name = f"{model}, B = {B}{', batch_invariant' * invariant}"
                counts = f"{launches_of_a_layer(found)}", f"{len(found.parts)}"
                rows.append([name, f"{found.memory_bytes / 1e9:.2f}", f"{ratio:.3f}", *counts])
                worst = (f"{kernel} {num_bytes / 1e6:,.0f} MB" for kernel, num_bytes in most_needless(found))
                details.append(f"{name}: besides weights and states: {', '.join(worst)}")
    header = ["decode, float32 states", "GB of memory", "times the necessary", "launches of a layer", "of a step"]
    return [*format_lines(header, rows), *details]


def _jobs() -> list[str]:
    rows = []
    for card, model, rate, whose in TO_BEAT:
        for state, dtype in STATES.items():
            cells = []
            for B in (256, 512, 1024):
                step = Step(MODELS[model], B, state_dtype=dtype, batch_invariant=True)
                fits = memory_needed(MODELS[model], B, dtype.itemsize) <= CARDS[card].memory
                cells.append(f"{job_rate(step, 64, 256, CARDS[card]):,.0f}" if fits else "-")
            rows.append([f"{CARDS[card].name}, {model}, {state} states", *cells, f"{rate:,} ({whose})"])
    return format_lines(["sampled tokens/s, predicted", "B=256", "B=512", "B=1024", "to beat"], rows)


def _measured() -> list[str]:
    lines = [f"beside {H100.name}, as measured"]
    for title, compared in (("step", measured.steps()), ("product", measured.products())):
        rows = [
            [one.name, f"{1e6 * one.measured:,.1f}", f"{1e6 * one.predicted:,.1f}", f"{one.difference:+.0%}"]
            for one in compared
        ]
        lines += format_lines([title, "measured, us", "predicted, us", "difference"], rows)
    return lines
