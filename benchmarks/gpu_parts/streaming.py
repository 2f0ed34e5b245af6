"""The part `streaming`: a model with a quarter of the layers resident, the others streamed from pinned host memory.

For each batch size: seconds of a step, of the same step with all layers resident (compute), and of the copies alone
(transfer). A perfect overlap takes the larger of the last two. The part of the transfer that was not hidden is the
step's time beyond compute.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from rwkv_batch.engine.state_pool import StatePool, pool_parts
from rwkv_batch.measure.table import format_lines
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.pipeline import Pipeline
from rwkv_batch.models.placement import LayerPlacement, Placement
from rwkv_batch.models.rows import Rows
from rwkv_batch.ops import resolve

from ..roofline import MODELS, Sizes
from .context import TINY, Context
from .device import release
from .engines import engine_backend
from .random_model import random_checkpoint
from .record import Point

BATCHES = (512, 64, 1)
MODEL = "7.2B"


def run(context: Context) -> list[str]:
    name, sizes = ("tiny", replace(TINY, L=4)) if context.is_rehearsal else (MODEL, MODELS[MODEL])
    if context.is_dry:
        sizes = replace(sizes, L=4)
    models = _Models(context, sizes)
    for B in (3,) if context.is_rehearsal else BATCHES:
        context.record.measure(f"{name} B={B}", partial(_point, context, models, B))
        release()
    return _table(context.record.points)


class _Models:
    """The model in both forms, loaded on first use."""

    def __init__(self, context: Context, sizes: Sizes) -> None:
        self._context, self._sizes = context, sizes
        self._loaded: dict[bool, Model] = {}

    def get(self, is_streamed: bool) -> Model:
        if is_streamed not in self._loaded:
            device, num_layers = self._context.device, self._sizes.L
            kept = LayerPlacement(device, torch.bfloat16)
            moved = LayerPlacement(device, torch.bfloat16, is_streamed=is_streamed)
            resident = num_layers // 4
            layers = (*[kept] * resident, *[moved] * (num_layers - resident))
            placement = Placement(device, torch.bfloat16, None, torch.float32, layers)
            file = ModelFile.open(random_checkpoint(self._sizes, device))
            ops = resolve(file.ops, engine_backend(self._context), device, torch.bfloat16, file.sizes)
            self._loaded[is_streamed] = Model(file, placement, ops)
        return self._loaded[is_streamed]


class _Step(NamedTuple):
    """One decode step of a model, without sampling."""

    model: Model
    pool: StatePool
    rows: Rows
    token_ids: torch.Tensor

    @classmethod
    def of(cls, model: Model, B: int) -> _Step:
        pool = StatePool(pool_parts(model.file, model.placement), B)
        slots = tuple(pool.allocate(B))
        pool.fill(torch.tensor(slots, device=model.device))
        token_ids = torch.arange(1, B + 1, device=model.device) % model.sizes["V"]
        return cls(model, pool, Rows(slots, (1,) * B, model.device, (0,) * B), token_ids)

    def run(self) -> None:
        with torch.inference_mode():
            self.model.logits(self.model.forward(self.token_ids, self.rows, self.pool.layers))


def _point(context: Context, models: _Models, B: int) -> Point:
    streamed, resident = (_Step.of(models.get(is_streamed), B) for is_streamed in (True, False))
    pipeline = streamed.model.pipeline
    assert pipeline is not None
    seconds = {
        "streamed": context.stopwatch.once(streamed.run),
        "compute": context.stopwatch.once(resident.run),
        "transfer": context.stopwatch.once(partial(_transfer, pipeline)),
    }
    assert pipeline.stream is not None
    not_hidden = max(0.0, seconds["streamed"] - seconds["compute"]) / seconds["transfer"]
    return {
        "B": B,
        "seconds": seconds,
        "bytes": pipeline.stream.nbytes,
        "bytes_per_second": pipeline.stream.nbytes / seconds["transfer"],
        "tokens_per_second": B / seconds["streamed"],
        "hidden_share_of_transfer": max(0.0, 1 - not_hidden),
        "of_the_slower": seconds["streamed"] / max(seconds["compute"], seconds["transfer"]),
    }


def _transfer(pipeline: Pipeline) -> None:
    """Runs all copies of a step without any other work."""
    stream = pipeline.stream
    assert stream is not None
    for number in range(len(stream)):
        with stream.running(number):
            pass


def _table(points: dict[str, Point]) -> list[str]:
    rows = [
        [
            name,
            f"{point['tokens_per_second']:,.0f}",
            *(f"{1000 * point['seconds'][part]:.1f}" for part in ("streamed", "compute", "transfer")),
            f"{point['bytes_per_second'] / 1e9:.1f}",
            f"{point['hidden_share_of_transfer']:.0%}",
            f"{point['of_the_slower']:.2f}",
        ]
        for name, point in points.items()
        if point
    ]
    columns = ["streaming", "tokens/s", "ms", "compute", "transfer", "GB/s", "hidden", "x the slower"]
    return format_lines(columns, rows)
