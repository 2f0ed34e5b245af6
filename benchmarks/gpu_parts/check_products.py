"""Checks of the ops with matrix products: against float64, and a row's bits beside any other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from rwkv_batch.checks.cases import DTYPES, dtypes
from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.products import (
    Product,
    check_deep_embed,
    check_linear,
    check_low_rank,
    check_project,
    check_score,
    deep_embed_weights,
    draw,
    draw_weight,
    low_rank_pairs,
    products,
    projection_of,
)
from rwkv_batch.checks.target import Target
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.scoring import log_normalizer, score
from rwkv_batch.ops import OpTable

from ..roofline import MODELS, Sizes
from .context import TINY, Context
from .record import Point


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    models = {"tiny": TINY} if context.is_rehearsal else {"0.1B": MODELS["0.1B"], "1.5B": MODELS["1.5B"]}
    target = Target("triton", context.device)
    for model, sizes in models.items():
        for dtype in dtypes(target) if model != "1.5B" else ("bfloat16",):
            for product in products(sizes):
                yield f"linear {dtype} {model} {product.use}", partial(_linear, context, target, product, DTYPES[dtype])
        for product in products(sizes):
            yield (
                f"linear bfloat16 {model} {product.use}, rows to the bit",
                partial(_rows, context, target, product),
            )
        for dtype in dtypes(target):
            for name, check in _OTHERS.items():
                yield f"{name} {dtype} {model}", partial(check, context, target, sizes, DTYPES[dtype])


def _linear(context: Context, target: Target, product: Product, dtype: torch.dtype) -> Point:
    tokens = (1, 16, 17, 64, 100, 256, *(() if product.use == "head" else (1000,)))
    tokens = (1, 17) if context.is_rehearsal else tokens
    return check_linear(target, product, dtype, tokens, (False, True)).point()


def _rows(context: Context, target: Target, product: Product) -> Point:
    """Checks that with fixed tiles the bits of a row depend on the row alone."""
    dtype = torch.bfloat16
    function = target.op("linear", dtype)
    torch.manual_seed(0)
    batch = (product.n,) if product.n else ()
    weight = draw_weight(target, product, dtype)
    most = 5 if context.is_rehearsal else 1024
    x = draw(target, *batch, most, product.K, dtype=dtype)

    def multiply(x: Tensor) -> Tensor:
        return function(x.contiguous(), weight, product.activation, fixed_tiles=True)

    checks, whole = Checks(), multiply(x)
    for M in (1, 2, 4) if context.is_rehearsal else (1, 2, 7, 16, 17, 32, 64, 65, 128, 256, 300, 512, 1023):
        checks.same(f"the first {M}", multiply(x[..., :M, :]), whole[..., :M, :])
    order = torch.randperm(most, generator=torch.Generator().manual_seed(0)).to(context.device)
    checks.same("in another order", multiply(x[..., order, :]), whole[..., order, :])
    checks.same("again", multiply(x), whole)
    return checks.point()


def _low_rank(context: Context, target: Target, sizes: Sizes, dtype: torch.dtype) -> Point:
    most = 5 if context.is_rehearsal else 1000
    checks, function = check_low_rank(target, sizes, dtype, most), target.op("low_rank", dtype)
    pairs, inputs = low_rank_pairs(sizes, context.device, dtype), draw(target, 6, most, sizes.C, dtype=dtype)
    whole = function(inputs, pairs)
    for M in (1, 3) if context.is_rehearsal else (1, 7, 16, 17, 64, 256, 300):
        checks.same(f"the first {M} rows", function(inputs[:, :M].contiguous(), pairs), whole[:, :M])
    return checks.point()


def _project(context: Context, target: Target, sizes: Sizes, dtype: torch.dtype) -> Point:
    most = 5 if context.is_rehearsal else 1000
    checks, function = check_project(target, sizes, dtype, most), target.op("project", dtype)
    p, inputs = projection_of(sizes, target, dtype, fixed_tiles=True), draw(target, 6, most, sizes.C, dtype=dtype)
    whole = function(inputs, p, None)
    for M in (1, 3) if context.is_rehearsal else (1, 7, 16, 17, 64, 256, 300):
        for found, expected in zip(function(inputs[:, :M].contiguous(), p, None), whole, strict=True):
            checks.same(f"the first {M} rows", torch.stack([*found]), torch.stack([*expected])[:, :M])
    return checks.point()


def _deep_embed(context: Context, target: Target, sizes: Sizes, dtype: torch.dtype) -> Point:
    most = 5 if context.is_rehearsal else 1000
    checks, function = check_deep_embed(target, sizes, dtype, most), target.op("deep_embed", dtype)
    weights, normed = deep_embed_weights(sizes, context.device, dtype), draw(target, most, sizes.C, dtype=dtype)
    token_ids = torch.randint(0, len(weights.table), (most,), device=context.device)
    whole = function(normed, token_ids, weights)
    for M in (1, 3) if context.is_rehearsal else (1, 7, 17, 64, 300):
        checks.same(f"the first {M} rows", function(normed[:M].contiguous(), token_ids[:M], weights), whole[:M])
    return checks.point()


def _score(context: Context, target: Target, sizes: Sizes, dtype: torch.dtype) -> Point:
    most = 5 if context.is_rehearsal else 700
    checks, function = check_score(target, sizes, dtype, most), target.op("score", dtype, V=sizes.V)
    head = DenseLinear(draw(target, sizes.V, sizes.C, dtype=dtype, std=4 / sizes.C**0.5))
    x = draw(target, most, sizes.C, dtype=dtype)
    targets = torch.randint(0, sizes.V, (most,), device=context.device)
    ops = OpTable.of(log_normalizer=log_normalizer, score=score)

    def logprobs(M: int) -> Tensor:
        return function(x[:M].contiguous(), head, targets[:M], torch.arange(M, device=x.device), ops)[0]

    whole = logprobs(most)
    for M in (1, 3) if context.is_rehearsal else (1, 17, 64, 300):
        checks.same(f"the first {M} rows", logprobs(M), whole[:M])
    return checks.point()


_OTHERS = {"low_rank": _low_rank, "project": _project, "deep_embed": _deep_embed, "score": _score}
