"""Rates of the ops on rows: sampler, token shift, low-rank pairs, DeepEmbed, scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rwkv_batch.checks.products import deep_embed_weights, low_rank_pairs
from rwkv_batch.engine.request import Request
from rwkv_batch.engine.sample import sample as sample_definition
from rwkv_batch.engine.sampler import Sampler
from rwkv_batch.engine.selection import select
from rwkv_batch.engine.slot_tables import Integer, Vocabulary
from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.blocks import Norm
from rwkv_batch.models.matrices.linear import DenseLinear, StackedLinear
from rwkv_batch.models.matrices.projection import Projection, project
from rwkv_batch.models.rows import padding_rows
from rwkv_batch.models.scoring import log_normalizer, score
from rwkv_batch.ops import Implementation, OpTable
from rwkv_batch.sampling_params import SamplingParams

from ..roofline import MODELS
from .context import TINY, Context
from .record import Point

SETTINGS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(),
    "top-p": SamplingParams(top_p=0.85),
    "penalties": SamplingParams(top_p=0.85, presence_penalty=0.5, frequency_penalty=0.3, penalty_decay=0.99),
}
LOGIT_STD = 4.0
_SEEN = 200
"""Number of distinct ids that a slot with penalties has seen."""


def run(context: Context) -> list[str]:
    measure = context.record.measure
    for name, params in SETTINGS.items():
        for B in (2,) if context.is_rehearsal else (64, 256, 1024, 4096):
            measure(f"sample {name} B={B}", partial(_sample, context, params, B))
    B = 2 if context.is_rehearsal else 64
    measure(f"sample's definition, top-p B={B}", partial(_sample, context, SETTINGS["top-p"], B, is_definition=True))
    for B in (2,) if context.is_rehearsal else (256, 1024):
        for name in ("shift_lerp", "low_rank", "project", "project by the library", "deep_embed", "score"):
            measure(f"{name} B={B}", partial(_RATES[name], context, B))
    return _table(context.record.points)


def _sample(context: Context, params: SamplingParams, B: int, is_definition: bool = False) -> Point:
    size = TINY.V if context.is_rehearsal else 65536
    B = min(B, 64) if context.is_dry else B
    function = sample_definition if is_definition else context.op("sample", V=size)
    ops = OpTable.of(sample=function, log_normalizer=log_normalizer, select=select)
    sampler = Sampler(B, Vocabulary.plain(size), context.device, ops)
    seen = list(range(1, min(_SEEN, size // 2)))
    sampler.assign(range(B), [Request(slot, [1], params, row=slot) for slot in range(B)])
    if params.presence_penalty:
        sampler.tables.reserve_seen(2 * len(seen) + 100)
        tables = sampler.tables
        tables.seen_ids[:B, : len(seen)] = torch.tensor(seen, dtype=torch.int32, device=context.device)
        tables.seen_count[:B, : len(seen)] = 1.0
        tables.integers[:B, Integer.NUM_SEEN] = len(seen)
    logit_bytes = 4 * B * size
    sets = context.stopwatch.rotation(logit_bytes, most=16)
    logits = [LOGIT_STD * torch.randn(B, size, device=context.device) for _ in range(sets)]
    slot_index = torch.arange(B, dtype=torch.int32, device=context.device)
    calls = [partial(sampler.draw, one, slot_index) for one in logits]
    if is_definition:  # the definition waits for the device, so it cannot be recorded
        seconds = context.stopwatch.once(calls[0])
    else:
        seconds = context.stopwatch.calls(calls)
    return _point(context, seconds, 2 * logit_bytes, sets)


def _shift_lerp(context: Context, B: int) -> Point:
    sizes, device = _sizes(context), context.device
    function, C, count = context.op("shift_lerp", C=sizes.C), sizes.C, 6
    x = torch.randn(B, C, device=device).bfloat16()
    norm = Norm(*(torch.randn(C, device=device).bfloat16() for _ in range(2)))
    mix = torch.rand(count, C, device=device).bfloat16()
    sets = context.stopwatch.rotation(2 * B * C * 2, most=256)
    shift = torch.randn(B, sets, C, device=device).bfloat16()
    rows = padding_rows(B, device)
    rows.slot_index.copy_(torch.randperm(B, device=device))
    calls = [partial(function, x, norm, mix, shift[:, i], rows) for i in range(sets)]
    return _point(context, context.stopwatch.calls(calls), (1 + count + 2) * B * C * 2, sets)


def _low_rank(context: Context, B: int) -> Point:
    sizes, device = _sizes(context), context.device
    function = context.op("low_rank")
    ranks = sum(sizes.ranks.values())
    weight_bytes = 2 * sizes.C * ranks * 2
    sets = context.stopwatch.rotation(weight_bytes, most=128)
    pairs = [low_rank_pairs(sizes, device, torch.bfloat16) for _ in range(sets)]
    inputs = torch.randn(6, B, sizes.C, device=device).bfloat16()
    calls = [partial(function, inputs, one) for one in pairs]
    return _point(context, context.stopwatch.calls(calls), weight_bytes + 8 * B * sizes.C * 2, sets)


def _project(context: Context, B: int, by_library: bool = False) -> Point:
    """r, k, v and the low-rank pairs, by the fused kernel or by its definition with the kernels of `linear`."""
    sizes, device = _sizes(context), context.device
    function = project if by_library else context.op("project")
    ops, multiply = OpTable.of(low_rank=context.op("low_rank")), context.op("linear")
    weight_bytes = 2 * sizes.C * (3 * sizes.C + 2 * sum(sizes.ranks.values()))
    sets = context.stopwatch.rotation(weight_bytes, most=16)
    weights = [(torch.randn(3, sizes.C, sizes.C, device=device) / sizes.C**0.5).bfloat16() for _ in range(sets)]
    matrices = [StackedLinear(weight, multiply, weight.nbytes, 3) for weight in weights]
    inputs = torch.randn(6, B, sizes.C, device=device).bfloat16()
    pairs = low_rank_pairs(sizes, device, torch.bfloat16)
    calls = [partial(function, inputs, Projection(one, pairs), ops) for one in matrices]
    return _point(context, context.stopwatch.calls(calls), weight_bytes + 13 * B * sizes.C * 2, sets)


def _deep_embed(context: Context, B: int) -> Point:
    sizes, device = _sizes(context), context.device
    function = context.op("deep_embed")
    weights = deep_embed_weights(sizes, device, torch.bfloat16)
    normed = torch.randn(B, sizes.C, device=device).bfloat16()
    sets = 4
    ids = [torch.randint(0, len(weights.table), (B,), device=device) for _ in range(sets)]
    calls = [partial(function, normed, one, weights) for one in ids]
    num_bytes = 2 * (32 * (sizes.C + sizes.F) + B * (1024 + sizes.C + sizes.F))
    return _point(context, context.stopwatch.calls(calls), num_bytes, sets)


def _score(context: Context, B: int) -> Point:
    sizes, device = _sizes(context), context.device
    function = context.op("score", V=sizes.V)
    weight = (torch.randn(sizes.V, sizes.C, device=device) * LOGIT_STD / sizes.C**0.5).bfloat16()
    head = DenseLinear(weight, Implementation(context.op("linear")))
    x = torch.randn(B, sizes.C, device=device).bfloat16()
    targets = torch.randint(0, sizes.V, (B,), device=device)
    ops = OpTable.of(log_normalizer=log_normalizer, score=score)
    rows = torch.arange(B, device=device)
    seconds = context.stopwatch.calls([partial(function, x, head, targets, rows, ops)] * 2)
    operations = 2 * B * sizes.V * sizes.C
    predicted = max(weight.nbytes / context.card.bandwidth, operations / context.card.matrix_rate)
    return _point(context, seconds, weight.nbytes, 1) | {"predicted_seconds": predicted}


_RATES: dict[str, Callable[..., Point]] = {
    "shift_lerp": _shift_lerp,
    "low_rank": _low_rank,
    "project": _project,
    "project by the library": partial(_project, by_library=True),
    "deep_embed": _deep_embed,
    "score": _score,
}


def _sizes(context: Context) -> Any:
    return TINY if context.is_rehearsal else MODELS["1.5B"]


def _point(context: Context, seconds: float, num_bytes: float, sets: int) -> Point:
    return {
        "seconds": seconds,
        "bytes": num_bytes,
        "sets": sets,
        "share_of_copy": context.share_of_copy(num_bytes, seconds),
        "predicted_seconds": max(context.card.launch, num_bytes / context.card.bandwidth),
    }


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [
            name,
            f"{1e6 * point['seconds']:,.1f}",
            f"{point['bytes'] / point['seconds'] / 1e9:,.0f} GB/s",
            f"{point['share_of_copy']:.0%}",
            f"{point['predicted_seconds'] / point['seconds']:.0%}",
        ]
        for name, point in points.items()
        if name.split()[0].removesuffix("'s") in (*_RATES, "sample")
    ]
    return format_lines(["rows", "us", "rate", "of copy", "predicted / measured"], rows)
