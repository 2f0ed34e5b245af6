"""The part `int8`: 8-bit weights beside bfloat16, in single products and in the whole engine."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch

from rwkv_batch.checks.products import Product, products
from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.matrices.mm8 import quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear
from rwkv_batch.models.model import Model
from rwkv_batch.ops import Implementation

from ..roofline import Sizes
from .context import Context
from .device import free_bytes, release
from .engines import decode, engine_backend, load, serve, slot_bytes
from .random_model import random_checkpoint
from .record import Point

TOKENS = (1, 8, 16, 64, 256, 1024, 8192)
MEASURED = ("output", "key", "value", "head")
BATCHES = (1, 16, 256, 1024)
FORMS = {"bfloat16": None, "W8A16": "int8", "W8A8": "w8a8"}
"""Name in tables → `quantization` of the model."""
ROUNDS = 2
NUM_STEPS = 60
MEMORY_SHARE = 0.9


def run(context: Context) -> list[str]:
    models = context.choose_models(("1.5B", "7.2B"))
    for model, sizes in models.items():
        for product in [product for product in products(sizes) if product.use in MEASURED]:
            for M in (2,) if context.is_rehearsal else TOKENS:
                if product.use != "head" or M <= 256:
                    context.record.measure(f"product {model} {product.use} M={M}", partial(_rates, context, product, M))
    for model, sizes in models.items():
        loaded: dict[str, Model] = {}
        for B in (2,) if context.is_dry else context.choose_batches(BATCHES):
            context.record.measure(f"engine {model} B={B}", partial(_engine, context, sizes, loaded, B))
            release()
        loaded.clear()
        release()
    return [*_product_table(context.record.points), "", *_engine_table(context.record.points)]


def _rates(context: Context, product: Product, M: int) -> Point:
    """Measures one product in each form, over weights that the cache does not hold."""
    device, card = context.device, context.card
    N, K = product.N, product.K
    count = context.stopwatch.rotation(N * K, most=64)
    x = torch.randn(M, K, device=device).bfloat16()
    dense = [(torch.randn(N, K, device=device) * K**-0.5).bfloat16() for _ in range(count)]
    linear, w8a8 = (context.op(name) for name in ("linear", "w8a8"))
    quantized = [quantize_mm8(weight) for weight in dense]
    eight_bit = {
        f"W8A16{mark}": [
            Mm8Linear(one, device, Implementation(context.op("mm8", backend=backend))) for one in quantized
        ]
        for backend, mark in context.backends.items()
    }
    levels = [(weight.float() * (127 / weight.float().abs().amax(1, keepdim=True))).round().char() for weight in dense]
    scale = torch.ones(N, device=device)
    seconds = context.stopwatch.calls
    times = {
        "bfloat16": seconds([partial(linear, x, weight) for weight in dense]),
        **{name: seconds([partial(weight, x) for weight in weights]) for name, weights in eight_bit.items()},
        "W8A8": seconds([partial(w8a8, x, q, scale) for q in levels]),
    }
    moved = {name: N * K * (2 if name == "bfloat16" else 1) + 2 * M * (K + N) for name in times}
    operations = 2 * M * N * K
    return {
        "seconds": times,
        "bytes": moved,
        "operations": operations,
        "bytes_per_second": {name: moved[name] / t for name, t in times.items()},
        "operations_per_second": {name: operations / t for name, t in times.items()},
        "share_of_copy": {name: context.share_of_copy(moved[name], t) for name, t in times.items()},
        "share_of_bfloat16_peak": {name: operations / t / card.matrix_rate for name, t in times.items()},
    }


def _engine(context: Context, sizes: Sizes, loaded: dict[str, Model], B: int) -> Point:
    """Measures decode steps of all forms in interleaved rounds."""
    for name, quantization in FORMS.items():
        if name not in loaded:
            checkpoint = random_checkpoint(sizes, context.device)
            loaded[name] = load(context, checkpoint, backend=engine_backend(context), quantization=quantization)
    free = free_bytes(context.device)
    need = len(FORMS) * B * slot_bytes(loaded["bfloat16"])
    if free is not None and need > MEMORY_SHARE * free:
        raise MemoryError(f"needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    engines = {name: serve(model, B) for name, model in loaded.items()}
    lengths = (1, 1) if context.is_rehearsal or context.is_dry else (NUM_STEPS, 10)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(1 if context.is_rehearsal else ROUNDS):
        for name, engine in engines.items():
            rounds[name].append(decode(engine, *lengths))
    steps = {name: median(run["step_seconds"] for run in runs) for name, runs in rounds.items()}
    return {
        "B": B,
        "rounds": rounds,
        "tokens_per_second": {name: B / step for name, step in steps.items()},
        "times_bfloat16": {name: steps["bfloat16"] / step for name, step in steps.items()},
    }


def _product_table(points: dict[str, Point]) -> list[str]:
    rows = []
    for name, point in points.items():
        if name.startswith("product "):
            times = point["seconds"]
            shares = point["share_of_copy"]
            rows.append(
                [
                    name.removeprefix("product "),
                    *(f"{1e6 * t:,.1f}" for t in times.values()),
                    *(f"{shares[form]:.0%}" for form in times),
                    *(f"{times['bfloat16'] / times[form]:.2f}" for form in times if form != "bfloat16"),
                ]
            )
    forms = [*next((point["seconds"] for point in points.values() if "operations" in point), ())]
    header = ["product", *(f"us {form}" for form in forms), *(f"of copy {form}" for form in forms)]
    return format_lines([*header, *(f"x {form}" for form in forms[1:])], rows)


def _engine_table(points: dict[str, Point]) -> list[str]:
    rows = [
        [f"{name.removeprefix('engine ')} {form}", f"{rate:,.0f}", f"{point['times_bfloat16'][form]:.2f}"]
        for name, point in points.items()
        if name.startswith("engine ")
        for form, rate in point["tokens_per_second"].items()
    ]
    return format_lines(["engine", "tokens/s", "x bf16"], rows)
