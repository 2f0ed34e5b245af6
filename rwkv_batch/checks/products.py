"""Checks of the ops with matrix products: comparisons with float64 products of the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..models.matrices.linear import DenseLinear, StackedLinear
from ..models.matrices.low_rank import LowRank, LowRankPair
from ..models.matrices.low_rank import low_rank as low_rank_definition
from ..models.matrices.product import Activation, Linear
from ..models.matrices.product import linear as linear_definition
from ..models.matrices.projection import Projection
from ..models.rwkv7 import DeepEmbed
from ..models.rwkv7 import deep_embed as deep_embed_definition
from ..models.scoring import log_normalizer
from ..models.scoring import score as score_definition
from ..ops import OpTable
from .comparisons import Checks, poisoned
from .limits import LIKELIER, LOGPROB_ERROR, SEVERAL_ROUNDINGS, tolerance
from .target import Target


class Sizes(Protocol):
    """Sizes of a model."""

    @property
    def C(self) -> int:
        """Width."""

    @property
    def F(self) -> int:
        """Width of the channel mix's hidden layer."""

    @property
    def V(self) -> int:
        """Vocabulary."""

    @property
    def ranks(self) -> Mapping[str, int]:
        """Ranks of the low-rank pairs, by the letter in their names: w, a, g and v."""


class Product(NamedTuple):
    """A product of the model: n of [M, K] with [N, K], and its epilogue."""

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
    """The products of a layer, and the head."""
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


def draw(target: Target, *shape: int, dtype: torch.dtype, std: float = 1.0) -> Tensor:
    """Normally distributed numbers."""
    return (torch.randn(*shape, device=target.device) * std).to(dtype)


def draw_weight(target: Target, product: Product, dtype: torch.dtype) -> Tensor:
    """A random weight, [N, K] or [n, N, K]."""
    batch = (product.n,) if product.n else ()
    return draw(target, *batch, product.N, product.K, dtype=dtype, std=product.K**-0.5)


def check_linear(
    target: Target, product: Product, dtype: torch.dtype, tokens: Iterable[int], fixed_tiles: Iterable[bool]
) -> Checks:
    """Compares results with the definition in float64.

    Args:
        tokens: numbers of rows, M.
    """
    checks, table = Checks(), target.ops("linear", dtype)
    torch.manual_seed(0)
    weight = draw_weight(target, product, dtype)
    packed, exact = table.pack("linear", weight), weight.double()
    batch = (product.n,) if product.n else ()
    result = torch.float32 if product.widened else dtype
    for M in tokens:
        x = draw(target, *batch, M, product.K, dtype=dtype)
        gate = draw(target, *batch, M, product.N, dtype=dtype) if product.gate else None
        residual = draw(target, *batch, M, product.N, dtype=dtype) if product.add else None
        wide_gate, wide_out = (None if part is None else part.double() for part in (gate, residual))
        right = linear_definition(x.double(), exact, product.activation, wide_gate, wide_out)
        for fixed in fixed_tiles:
            out = None if residual is None else residual.clone()
            with poisoned():
                y = table.linear(x, packed, product.activation, gate, out, None if out is not None else result, fixed)
            name = f"{product.use} {product.N} x {product.K}, M={M}{', fixed tiles' * fixed}"
            checks.close(name, y, right, _limit(product, dtype, fixed))
    return checks


def _limit(product: Product, dtype: torch.dtype, fixed_tiles: bool) -> float:
    """Limit of the error. Without fixed tiles torch may multiply: its product is rounded before it is squared."""
    is_rounded_twice = product.activation == "squared_relu" and not fixed_tiles
    return (SEVERAL_ROUNDINGS if is_rounded_twice else 1.0) * tolerance(dtype)


def low_rank_pairs(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> LowRank:
    """The pairs of a v7 layer, stacked for kernels as `Weights.low_rank` does."""
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


def check_low_rank(target: Target, sizes: Sizes, dtype: torch.dtype, tokens: int) -> Checks:
    """Compares results with the definition in float64, which does not round between the factors."""
    checks, function = Checks(), target.op("low_rank", dtype)
    torch.manual_seed(0)
    pairs = low_rank_pairs(sizes, target.device, dtype)
    inputs = draw(target, 6, tokens, sizes.C, dtype=dtype)
    with poisoned():
        found = function(inputs, _packed(pairs, target, dtype))
    right = low_rank_definition(inputs.double(), _with(pairs, _in_float64))
    for i in range(len(right)):
        checks.close(f"C={sizes.C}, M={tokens}, pair {i}", found[i], right[i], tolerance(dtype))
    return checks


def projection_of(sizes: Sizes, target: Target, dtype: torch.dtype, fixed_tiles: bool) -> Projection:
    """Receptance, key and value of a v7 layer, and its low-rank pairs."""
    weight = draw(target, 3, sizes.C, sizes.C, dtype=dtype, std=sizes.C**-0.5)
    matrices = StackedLinear(weight, linear_definition, weight.nbytes, 3)
    return Projection(matrices, low_rank_pairs(sizes, target.device, dtype), fixed_tiles)


def check_project(target: Target, sizes: Sizes, dtype: torch.dtype, tokens: int) -> Checks:
    """Compares results with the definition in float64, which does not round between the factors."""
    checks, function = Checks(), target.op("project", dtype)
    torch.manual_seed(0)
    p = projection_of(sizes, target, dtype, fixed_tiles=True)
    inputs = draw(target, 6, tokens, sizes.C, dtype=dtype)
    wide = inputs.double()
    right = [
        *p.matrices.weight.double().matmul(wide[:3].mT).mT,
        *low_rank_definition(wide, _with(p.low_rank, _in_float64)),
    ]
    for fixed in (True, False):
        with poisoned():
            products, pairs = function(inputs, p._replace(fixed_tiles=fixed), OpTable.of(low_rank=low_rank_definition))
        for i, (found, exact) in enumerate(zip([*products, *pairs], right, strict=True)):
            checks.close(
                f"C={sizes.C}, M={tokens}, result {i}{', fixed tiles' * fixed}", found, exact, tolerance(dtype)
            )
    return checks


def deep_embed_weights(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> DeepEmbed:
    """DeepEmbed weights of one layer, with rank 32 and a small vocabulary."""
    rank, vocab = 32, min(sizes.V, 4096)
    down = (torch.randn(sizes.C, rank, device=device) / sizes.C**0.5).to(dtype)
    up = (torch.randn(rank, sizes.F, device=device) / rank**0.5).to(dtype)
    pair = LowRankPair(0, None, DenseLinear(down.t()), DenseLinear(up.t()))
    table = (torch.randn(vocab, rank * rank, device=device) * 0.3 / rank**0.5).to(dtype)
    s0 = (1 + 0.1 * torch.randn(sizes.F, device=device)).to(dtype)
    return DeepEmbed(table, LowRank((pair,), *LowRank.stack([down], [up])), s0)


def check_deep_embed(target: Target, sizes: Sizes, dtype: torch.dtype, tokens: int) -> Checks:
    """Compares gates with the definition in float64, which does not round between the factors."""
    checks, function = Checks(), target.op("deep_embed", dtype)
    torch.manual_seed(0)
    weights = deep_embed_weights(sizes, target.device, dtype)
    normed = draw(target, tokens, sizes.C, dtype=dtype)
    token_ids = torch.randint(0, len(weights.table), (tokens,), device=target.device)
    with poisoned():
        found = function(normed, token_ids, weights._replace(factors=_packed(weights.factors, target, dtype)))
    exact = DeepEmbed(weights.table.double(), _with(weights.factors, _in_float64), weights.s0.double())
    right = deep_embed_definition(normed.double(), token_ids, exact)
    checks.close(f"C={sizes.C}, M={tokens}", found, right, tolerance(dtype))
    return checks


def check_score(target: Target, sizes: Sizes, dtype: torch.dtype, tokens: int) -> Checks:
    """Compares log-probabilities with those of float64 logits, and the most likely tokens where the lead is clear."""
    checks, function = Checks(), target.op("score", dtype, V=sizes.V)
    torch.manual_seed(0)
    head = DenseLinear(draw(target, sizes.V, sizes.C, dtype=dtype, std=4 / sizes.C**0.5))
    x = draw(target, tokens, sizes.C, dtype=dtype)
    right = torch.log_softmax(x.double() @ head.weight.double().t(), 1)
    targets = torch.randint(0, sizes.V, (tokens,), device=target.device)
    targets[::3] = right.argmax(1)[::3]
    ops = OpTable.of(log_normalizer=log_normalizer, score=score_definition)
    with poisoned():
        logprobs, is_greedy = function(x, head, targets, torch.arange(tokens, device=target.device), ops)
    best, second = right.topk(2, 1).values.unbind(1)
    clear, where = best - second > LIKELIER, f"V={sizes.V}, M={tokens}"
    checks.near(f"{where}, log-probability", logprobs, right.gather(1, targets[:, None])[:, 0], LOGPROB_ERROR)
    checks.same(f"{where}, most likely", is_greedy[clear], (right.argmax(1) == targets)[clear])
    return checks


def _with(factors: LowRank, change: Callable[[Linear], Linear]) -> LowRank:
    """The pairs with changed factors."""
    pairs = (pair._replace(down=change(pair.down), up=change(pair.up)) for pair in factors.pairs)
    return LowRank(tuple(pairs), None, None)


def _in_float64(one: Linear) -> Linear:
    return DenseLinear(one.weight.double())


def _packed(factors: LowRank, target: Target, dtype: torch.dtype) -> LowRank:
    """The pairs as the target's `low_rank` and `deep_embed` take them: with packed weights on a CPU."""
    if target.backend != "cpu":
        return factors
    op = target.ops("linear", dtype).implementations["linear"]
    return _with(factors, lambda one: DenseLinear(op.packed(one.weight), op))
