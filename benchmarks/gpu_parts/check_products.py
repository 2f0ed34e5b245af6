"""Checks of the ops with matrix products, which are compared with float64 products of the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_batch.models.linear import DenseLinear
from rwkv_batch.models.low_rank import LowRank, LowRankPair
from rwkv_batch.models.product import ACTIVATIONS, Activation
from rwkv_batch.models.rwkv7 import DeepEmbed
from rwkv_batch.models.scoring import log_normalizer, score
from rwkv_batch.ops import OpTable

from ..roofline import MODELS, Sizes
from .context import TINY, Context
from .device import poisoned
from .ops import DTYPES, LARGEST_ERROR, Checks, op
from .record import Point

LOGPROB_ERROR = 3e-4
"""Of a log-probability, absolute, beside what rounding the inputs makes."""


class Product(NamedTuple):
    """A product of the model: n of [M, K] with [N, K], and what follows."""

    use: str
    N: int
    K: int
    n: int = 0
    activation: Activation | None = None
    gate: bool = False
    add: bool = False
    widened: bool = False
    """The result is float32."""


def products(sizes: Sizes) -> list[Product]:
    """Those of a layer, and the head."""
    C, F = sizes.C, sizes.F
    return [
        Product("r, k, v", C, C, n=3),
        Product("output", C, C, add=True),
        Product("key", F, C, activation="squared_relu"),
        Product("gated key", F, C, activation="squared_relu", gate=True),
        Product("value", C, F, add=True),
        Product("gated value", C, F, gate=True, add=True),
        Product("receptance", C, C, activation="sigmoid"),
        Product("head", sizes.V, C, widened=True),
    ]


def points(context: Context) -> Iterator[tuple[str, Callable[[], Point]]]:
    models = {"tiny": TINY} if context.is_rehearsal else {"0.1B": MODELS["0.1B"], "1.5B": MODELS["1.5B"]}
    for model, sizes in models.items():
        for dtype in DTYPES if model != "1.5B" else ("bfloat16",):
            for product in products(sizes):
                yield f"linear {dtype} {model} {product.use}", partial(_linear, context, product, DTYPES[dtype])
        for product in products(sizes):
            yield f"linear bfloat16 {model} {product.use}, rows to the bit", partial(_rows, context, product)
        for dtype in DTYPES:
            yield f"low_rank {dtype} {model}", partial(_low_rank, context, sizes, DTYPES[dtype])
            yield f"deep_embed {dtype} {model}", partial(_deep_embed, context, sizes, DTYPES[dtype])
            yield f"score {dtype} {model}", partial(_score, context, sizes, DTYPES[dtype])


def _draw(context: Context, *shape: int, dtype: torch.dtype, std: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=context.device) * std).to(dtype)


def _sizes_of_batch(context: Context, use: str) -> tuple[int, ...]:
    if context.is_rehearsal:
        return (1, 17)
    return (1, 16, 17, 64, 100, 256, *(() if use == "head" else (1000,)))


def _linear(context: Context, product: Product, dtype: torch.dtype) -> Point:
    function = op("linear", context.device, dtype)
    torch.manual_seed(0)
    batch = (product.n,) if product.n else ()
    weight = _draw(context, *batch, product.N, product.K, dtype=dtype, std=product.K**-0.5)
    checks = Checks()
    result = torch.float32 if product.widened else dtype
    for M in _sizes_of_batch(context, product.use):
        x = _draw(context, *batch, M, product.K, dtype=dtype)
        gate = _draw(context, *batch, M, product.N, dtype=dtype) if product.gate else None
        residual = _draw(context, *batch, M, product.N, dtype=dtype) if product.add else None
        right = x.double() @ weight.double().transpose(-1, -2)
        if product.activation is not None:
            right = ACTIVATIONS[product.activation](right)
        if gate is not None:
            right = right * gate.double()
        if residual is not None:
            right = right + residual.double()
        for fixed_tiles in (False, True):
            out = None if residual is None else residual.clone()
            with poisoned():
                y = function(x, weight, product.activation, gate, out, None if out is not None else result, fixed_tiles)
            checks.close(f"M={M}{' fixed tiles' * fixed_tiles}", y, right, LARGEST_ERROR[dtype])
        del right
    return checks.point()


def _rows(context: Context, product: Product) -> Point:
    """With fixed tiles a row's bits depend on nothing but the row."""
    function = op("linear", context.device)
    torch.manual_seed(0)
    batch, dtype = (product.n,) if product.n else (), torch.bfloat16
    weight = _draw(context, *batch, product.N, product.K, dtype=dtype, std=product.K**-0.5)
    most = 5 if context.is_rehearsal else 1024
    x = _draw(context, *batch, most, product.K, dtype=dtype)

    def multiply(x: Tensor) -> Tensor:
        return function(x.contiguous(), weight, product.activation, fixed_tiles=True)

    checks, whole = Checks(), multiply(x)
    for M in (1, 2, 4) if context.is_rehearsal else (1, 2, 7, 16, 17, 32, 64, 65, 128, 256, 300, 512, 1023):
        checks.same(f"the first {M}", multiply(x[..., :M, :]), whole[..., :M, :])
    order = torch.randperm(most, generator=torch.Generator().manual_seed(0)).to(context.device)
    checks.same("in another order", multiply(x[..., order, :]), whole[..., order, :])
    checks.same("again", multiply(x), whole)
    return checks.point()


def low_rank_pairs(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> LowRank:
    """Those of a v7 layer, as `Weights.low_rank` makes them for kernels."""
    activations: dict[str, Activation | None] = {"w": "tanh", "a": None, "g": "sigmoid", "v": None}
    downs, ups = [], []
    for letter in activations:
        rank = sizes.ranks[letter]
        downs.append((torch.randn(sizes.C, rank, device=device) / sizes.C**0.5).to(dtype))
        ups.append((torch.randn(rank, sizes.C, device=device) / rank**0.5).to(dtype))
    pairs = tuple(
        LowRankPair("rkvwag".index(letter), activation, DenseLinear(down.t()), DenseLinear(up.t()))
        for (letter, activation), down, up in zip(activations.items(), downs, ups, strict=True)
    )
    return LowRank(pairs, *LowRank.stack(downs, ups))


def _low_rank(context: Context, sizes: Sizes, dtype: torch.dtype) -> Point:
    function = op("low_rank", context.device, dtype)
    torch.manual_seed(0)
    pairs = low_rank_pairs(sizes, context.device, dtype)
    most = 5 if context.is_rehearsal else 1000
    inputs = _draw(context, 6, most, sizes.C, dtype=dtype)
    with poisoned():
        whole = function(inputs, pairs)
    checks = Checks()
    for i, pair in enumerate(pairs.pairs):
        low = inputs[pair.source].double() @ pair.down.weight.double().t()
        low = low if pair.activation is None else ACTIVATIONS[pair.activation](low)
        checks.close(f"pair {i}", whole[i], low @ pair.up.weight.double().t(), LARGEST_ERROR[dtype])
    for M in (1, 3) if context.is_rehearsal else (1, 7, 16, 17, 64, 256, 300):
        checks.same(f"the first {M} rows", function(inputs[:, :M].contiguous(), pairs), whole[:, :M])
    return checks.point()


def deep_embed_weights(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> DeepEmbed:
    """Of one layer, with a rank of 32 and a few tokens."""
    rank, vocab = 32, min(sizes.V, 4096)
    down = (torch.randn(sizes.C, rank, device=device) / sizes.C**0.5).to(dtype)
    up = (torch.randn(rank, sizes.F, device=device) / rank**0.5).to(dtype)
    pair = LowRankPair(0, None, DenseLinear(down.t()), DenseLinear(up.t()))
    table = (torch.randn(vocab, rank * rank, device=device) * 0.3 / rank**0.5).to(dtype)
    s0 = (1 + 0.1 * torch.randn(sizes.F, device=device)).to(dtype)
    return DeepEmbed(table, LowRank((pair,), *LowRank.stack([down], [up])), s0)


def _deep_embed(context: Context, sizes: Sizes, dtype: torch.dtype) -> Point:
    function = op("deep_embed", context.device, dtype)
    torch.manual_seed(0)
    weights = deep_embed_weights(sizes, context.device, dtype)
    (pair,) = weights.factors.pairs
    most = 5 if context.is_rehearsal else 1000
    normed = _draw(context, most, sizes.C, dtype=dtype)
    token_ids = torch.randint(0, len(weights.table), (most,), device=context.device)
    with poisoned():
        whole = function(normed, token_ids, weights)
    low = normed.double() @ pair.down.weight.double().t()
    squares = weights.table[token_ids].double().view(most, 32, 32)
    right = (low[:, None] @ squares)[:, 0] @ pair.up.weight.double().t() + weights.s0.double()
    checks = Checks()
    checks.close("gate", whole, right, LARGEST_ERROR[dtype])
    for M in (1, 3) if context.is_rehearsal else (1, 7, 17, 64, 300):
        checks.same(f"the first {M} rows", function(normed[:M].contiguous(), token_ids[:M], weights), whole[:M])
    return checks.point()


def _score(context: Context, sizes: Sizes, dtype: torch.dtype) -> Point:
    function = op("score", context.device, dtype, V=sizes.V)
    torch.manual_seed(0)
    weight = _draw(context, sizes.V, sizes.C, dtype=dtype, std=4 / sizes.C**0.5)
    most = 5 if context.is_rehearsal else 700
    x = _draw(context, most, sizes.C, dtype=dtype)
    right = torch.log_softmax(x.double() @ weight.double().t(), 1)
    targets = torch.randint(0, sizes.V, (most,), device=context.device)
    targets[::3] = right.argmax(1)[::3]
    ops = OpTable({"log_normalizer": log_normalizer, "score": score}, ())
    head = DenseLinear(weight, op("linear", context.device, dtype))
    with poisoned():
        logprobs, is_greedy = function(x, head, targets, torch.arange(len(x), device=x.device), ops)
    want = right.gather(1, targets[:, None])[:, 0]
    best, second = right.topk(2, 1).values.unbind(1)
    checks, clear = Checks(), best - second > 1e-3
    checks.at_most("log-probability", float((logprobs - want).abs().nan_to_num(nan=torch.inf).max()), LOGPROB_ERROR)
    checks.same("most likely", is_greedy[clear], (right.argmax(1) == targets)[clear])
    for M in (1, 3) if context.is_rehearsal else (1, 17, 64, 300):
        alone, _ = function(x[:M].contiguous(), head, targets[:M], torch.arange(M, device=x.device), ops)
        checks.same(f"the first {M} rows", alone, logprobs[:M])
    return checks.point()
