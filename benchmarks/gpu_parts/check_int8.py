"""Checks of the products with int8 weights: mm8 against the matrix it stands for, w8a8 to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from rwkv_batch.models.mm8 import Mm8Weight, quantize_mm8
from rwkv_batch.models.mm8_linear import Mm8Linear
from rwkv_batch.ops import OpTable

from ..roofline import MODELS
from .check_products import Product, products
from .context import TINY, Context
from .device import poisoned
from .ops import DTYPES, Checks, backends, op
from .record import Point

MM8_ERROR = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-5}
"""||out - right|| / ||right||."""


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    models = {"tiny": TINY} if context.is_rehearsal else {"0.1B": MODELS["0.1B"], "1.5B": MODELS["1.5B"]}
    for model, sizes in models.items():
        for product in [product for product in products(sizes) if product.use in ("output", "key", "value", "head")]:
            # The interpreter cuts bits off where it makes bfloat16, which is more than mm8 may be wrong by.
            dtypes = ("float16", "float32") if context.is_rehearsal else DTYPES
            for dtype in dtypes if model != "1.5B" else ("bfloat16",):
                where = f"{dtype} {model} {product.use}"
                for backend, mark in backends(context.is_rehearsal).items():
                    yield f"mm8{mark} {where}", partial(_mm8, context, product, DTYPES[dtype], backend)
                yield f"w8a8 {where}", partial(_w8a8, context, product, DTYPES[dtype])


def _inputs(context: Context, product: Product, dtype: torch.dtype) -> Iterator[Tensor]:
    sizes = (1, 17) if context.is_rehearsal else (1, 16, 17, 64, 100, *(() if product.use == "head" else (1000,)))
    for M in sizes:
        x = torch.randn(M, product.K, device=context.device)
        yield (x.relu().square() if product.use == "value" else x).to(dtype)


def _mm8(context: Context, product: Product, dtype: torch.dtype, backend: str) -> Point:
    torch.manual_seed(0)
    weight = quantize_mm8(torch.randn(product.N, product.K, device=context.device) * product.K**-0.5)
    layer = Mm8Linear(weight, context.device, OpTable({"mm8": op("mm8", context.device, dtype, backend=backend)}, ()))
    exact, checks = _stands_for(weight), Checks()
    for x in _inputs(context, product, dtype):
        with poisoned():
            y = layer(x)
        checks.close(f"M={len(x)}", y, x.double() @ exact.t(), MM8_ERROR[dtype])
    return checks.point()


def _w8a8(context: Context, product: Product, dtype: torch.dtype) -> Point:
    torch.manual_seed(0)
    function = op("w8a8", context.device, dtype)
    q = torch.randint(-127, 128, (product.N, product.K), device=context.device, dtype=torch.int8)
    scale, checks = torch.rand(product.N, device=context.device), Checks()
    for x in _inputs(context, product, dtype):
        peak = x.float().abs().amax(1, keepdim=True)
        x_scale = peak / torch.full_like(peak, 127)  # by a number, a GPU would multiply by its inverse
        levels = (x.float() / x_scale).round().clamp(-127, 127)
        # Float64 holds the whole numbers of the sum exactly.
        sums = (levels.double() @ q.double().t()).float()
        with poisoned():
            y = function(x, q, scale)
        checks.same(f"M={len(x)}", y, (sums * (x_scale * scale)).to(dtype))
    return checks.point()


def _stands_for(w: Mm8Weight) -> Tensor:
    """The matrix [N, K] of an 8-bit form, float64."""
    q, mx, rx, my, ry = (tensor.double() for tensor in (w.q, w.mx, w.rx, w.my, w.ry))
    return ((q + 0.5) * ry[:, None] * rx + my[:, None] + mx).t()
