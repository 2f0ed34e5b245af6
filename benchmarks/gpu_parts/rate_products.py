"""Rates of products: our kernel with chosen and with fixed tiles, and cuBLAS; and which tiles keep a row's bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.products import Product, products
from rwkv_batch.measure.table import format_lines
from rwkv_batch.triton_kernels import linear as linear_module
from rwkv_batch.triton_kernels.linear import ANY, Choice
from rwkv_batch.triton_kernels.tiles import Tile

from ..roofline import MODELS, Sizes
from .context import TINY, Context
from .record import Point

FEW, MANY = (1, 16, 64, 256), (512, 2048, 8192)
MEASURED = ("r, k, v", "output", "key", "value", "head")
TILES = {
    16: (Tile(16, 16, 256, 4, 4), Tile(16, 32, 128, 4, 4), Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 4)),
    64: (Tile(64, 32, 64, 4, 4), Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(64, 64, 128, 4, 3)),
    256: (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3), Tile(256, 128, 64, 8, 3)),
}
"""Number of tokens → tiles that are compared."""


def run(context: Context) -> list[str]:
    measure = context.record.measure
    models = {"tiny": TINY} if context.is_rehearsal else {name: MODELS[name] for name in ("0.1B", "7.2B", "1.5B")}
    measure("product, bits by tile", lambda: _bits_by_tile(context))
    for model, sizes in models.items():
        for product in [product for product in products(sizes) if product.use in MEASURED]:
            for M in _batch_sizes(context, product):
                measure(f"product {model} {product.use} M={M}", partial(_rates, context, product, M))
    for model, sizes in list(models.items())[:2]:
        for product in [product for product in products(sizes) if product.use in ("output", "key", "value")]:
            for M in (16,) if context.is_rehearsal else TILES:
                measure(f"tiles {model} {product.use} M={M}", partial(_tiles, context, product, M))
    return _table(context.record.points)


def _batch_sizes(context: Context, product: Product) -> tuple[int, ...]:
    if context.is_rehearsal:
        return (2,)
    return FEW if product.use == "head" else (*FEW, *MANY)


class _Buffers:
    """Weights of a rotation, and one set of activations.

    Args:
        count: number of sets of weights.
    """

    def __init__(self, context: Context, product: Product, M: int) -> None:
        batch = (product.n,) if product.n else ()
        self.product, self.context = product, context
        weight_bytes = max(product.n, 1) * product.N * product.K * 2
        self.count = context.stopwatch.rotation(weight_bytes, most=64)
        device, dtype = context.device, torch.bfloat16
        shape = (*batch, product.N, product.K)
        self.weights = [torch.randn(shape, device=device, dtype=dtype) * product.K**-0.5 for _ in range(self.count)]
        self.x = torch.randn(*batch, M, product.K, device=device, dtype=dtype)
        self.out = torch.randn(*batch, M, product.N, device=device, dtype=dtype) if product.add else None
        result_bytes = max(product.n, 1) * M * product.N * (4 if product.widened else 2)
        self.num_bytes = weight_bytes + self.x.nbytes + result_bytes * (2 if product.add else 1)
        self.operations = 2 * max(product.n, 1) * M * product.N * product.K

    def ours(self, fixed_tiles: bool) -> float:
        """Returns the seconds of one call of our kernel."""
        function, product = self.context.op("linear"), self.product
        dtype = torch.float32 if product.widened else None
        return self._seconds(
            lambda weight: function(self.x, weight, product.activation, None, self.out, dtype, fixed_tiles)
        )

    def library(self) -> float:
        """Returns the seconds of torch's product."""
        return self._seconds(lambda weight: torch.matmul(self.x, weight.transpose(-1, -2)))

    def _seconds(self, call: Callable[[Tensor], Tensor]) -> float:
        return self.context.stopwatch.calls([partial(call, weight) for weight in self.weights])


def _rates(context: Context, product: Product, M: int) -> Point:
    buffers, card = _Buffers(context, product, M), context.card
    times = {"ours": buffers.ours(False), "fixed tiles": buffers.ours(True), "library": buffers.library()}
    return {
        "seconds": times,
        "bytes": buffers.num_bytes,
        "operations": buffers.operations,
        "share_of_copy": {name: context.share_of_copy(buffers.num_bytes, t) for name, t in times.items()},
        "share_of_peak": {name: buffers.operations / t / card.matrix_rate for name, t in times.items()},
        "predicted_seconds": max(
            card.launch, buffers.num_bytes / card.bandwidth, buffers.operations / card.matrix_rate / card.efficiency
        ),
        "sets": buffers.count,
    }


def _tiles(context: Context, product: Product, M: int) -> Point:
    """Measures the seconds of every tile, to choose the tables in the kernel."""
    buffers = _Buffers(context, product, M)
    found: dict[str, float | str] = {}
    for tile in TILES[M]:
        label = f"{tile.tokens}x{tile.rows}x{tile.depth} warps {tile.num_warps} stages {tile.num_stages}"
        with _only(tile):
            try:
                found[label] = buffers.ours(True)
            except Exception as error:  # such as too much shared memory; other tiles may still work
                if "CUDA error" in str(error):
                    raise
                found[label] = f"{type(error).__name__}: {str(error)[:120]}"
    found["library"] = buffers.library()
    return {"seconds": found, "best": min((t, name) for name, t in found.items() if isinstance(t, float))[1]}


def _only(tile: Tile) -> AbstractContextManager[Any]:
    """Patches the kernel to take one tile for every product."""
    return patch.dict(linear_module.FIXED, {torch.bfloat16: (Choice(ANY, ANY, ANY, tile),)})


def _bits_by_tile(context: Context) -> Point:
    """Checks for each depth of a tile that a product has the same bits with any number of tokens in the tile."""
    function = context.op("linear")
    sizes = TINY if context.is_rehearsal else Sizes(12, 768, 3072)
    torch.manual_seed(0)
    weight = (torch.randn(sizes.F, sizes.C, device=context.device) * sizes.C**-0.5).bfloat16()
    x = torch.randn(4 if context.is_rehearsal else 256, sizes.C, device=context.device).bfloat16()
    outs = {}
    for tokens in (16, 32) if context.is_rehearsal else (16, 32, 64, 128, 256):
        with _only(Tile(tokens, 64, 64, 4, 3)):
            outs[tokens] = function(x, weight, fixed_tiles=True)
    checks = Checks()
    for tokens, out in outs.items():
        checks.same(f"{tokens} tokens as 16", out, outs[16])
    found = checks.point()
    return {"same_bits": found["ok"], "found": found["found"]}


def _table(points: dict[str, Point]) -> list[str]:
    """Makes the table: the products of a layer together, and the head, by model and number of tokens."""
    sums: dict[tuple[str, int], list[Point]] = {}
    for name, point in points.items():
        if name.startswith("product ") and "bytes" in point:
            _, model, *use, tokens = name.split()
            what = f"{model} {'head' if use == ['head'] else 'layer'}"
            sums.setdefault((what, int(tokens.removeprefix("M="))), []).append(point)
    rows = []
    for (what, M), found in sums.items():
        times = [sum(point["seconds"][kind] for point in found) for kind in ("ours", "fixed tiles", "library")]
        predicted = sum(point["predicted_seconds"] for point in found)
        shares = [f"{predicted / time:.0%}" for time in times]
        rows.append([f"{what} M={M}", *(f"{1e6 * time:,.1f}" for time in times), f"{1e6 * predicted:,.1f}", *shares])
    header = ["products", "us ours", "fixed", "library", "predicted", "/ ours", "/ fixed", "/ library"]
    lines = format_lines(header, rows)
    same = points.get("product, bits by tile")
    if same:
        lines.append(f"bits of a row by tokens of a tile: {'the same' if same['same_bits'] else 'not the same'}")
    return lines
