"""Checks of products with int8 weights: mm8 against the dequantized matrix, w8a8 to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from rwkv_batch.checks.cases import DTYPES, dtypes
from rwkv_batch.checks.int8 import check_mm8, check_whole_numbers
from rwkv_batch.checks.products import Product, products
from rwkv_batch.checks.target import Target

from ..roofline import MODELS
from .context import TINY, Context
from .record import Point


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    models = {"tiny": TINY} if context.is_rehearsal else {"0.1B": MODELS["0.1B"], "1.5B": MODELS["1.5B"]}
    triton = Target("triton", context.device)
    for model, sizes in models.items():
        for product in [product for product in products(sizes) if product.use in ("output", "key", "value", "head")]:
            for dtype in dtypes(triton) if model != "1.5B" else ("bfloat16",):
                where = f"{dtype} {model} {product.use}"
                for backend, mark in context.backends.items():
                    target = Target(backend, context.device)
                    yield f"mm8{mark} {where}", partial(_mm8, context, target, product, DTYPES[dtype])
                yield f"w8a8 {where}", partial(_w8a8, context, triton, product, DTYPES[dtype])


def _tokens(context: Context, product: Product) -> tuple[int, ...]:
    return (1, 17) if context.is_rehearsal else (1, 16, 17, 64, 100, *(() if product.use == "head" else (1000,)))


def _mm8(context: Context, target: Target, product: Product, dtype: torch.dtype) -> Point:
    return check_mm8(target, product, dtype, _tokens(context, product)).point()


def _w8a8(context: Context, target: Target, product: Product, dtype: torch.dtype) -> Point:
    return check_whole_numbers(target, "w8a8", product, dtype, _tokens(context, product)).point()
