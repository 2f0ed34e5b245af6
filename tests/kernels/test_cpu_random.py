"""The CPU kernels with random shapes and random numbers, among them infinities, NaNs and the largest numbers.

Finite numbers are compared with the definitions. `make sanitize` runs these tests on a library whose sanitizers end the
process at an access outside of an array and at undefined behavior.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_batch.checks.calls import VARIANTS, make_call, op_of
from rwkv_batch.checks.cases import ModelSizes
from rwkv_batch.checks.comparisons import Checks
from rwkv_batch.checks.int8 import check_mm8, check_whole_numbers
from rwkv_batch.checks.products import Product, check_linear, check_low_rank
from rwkv_batch.checks.recurrences import Batch, Heads, check_recurrence, check_shift_lerp
from rwkv_batch.checks.sampling import SETTINGS, Drawer, check_log_normalizer, check_sample, check_top_tokens
from rwkv_batch.checks.target import CPU, Target
from rwkv_batch.cpu_kernels.build import unavailable

if unavailable():
    pytest.skip(str(unavailable()), allow_module_level=True)

TARGET = Target("cpu", CPU)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTREME = (torch.inf, -torch.inf, torch.nan, 3.3e38, -3.3e38, 1e-45, 65504.0, -0.0)
ROUNDS = 3
"""Draws of shapes in each test and seed."""


@pytest.fixture(params=range(ROUNDS))
def dice(request: pytest.FixtureRequest, soak_seed: int) -> random.Random:
    """Draws the shapes, and seeds torch."""
    torch.manual_seed(ROUNDS * soak_seed + request.param)
    return random.Random(ROUNDS * soak_seed + request.param)


def assert_fine(checks: Checks) -> None:
    assert checks.found
    assert not checks.wrong, "; ".join(map(str, checks.wrong))


def drawn_batch(dice: random.Random) -> Batch:
    """Rows of random lengths in slots that differ; some are padding."""
    count = dice.randint(1, 6)
    slots = [slot if dice.random() < 0.8 else -1 for slot in dice.sample(range(12), count)]
    return Batch(slots, [dice.choice((1, 1, 2, 7)) for _ in slots])


def with_extremes(x: Any, dice: random.Random) -> Any:
    """The tensor with some numbers replaced."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        return x
    x = x.clone()
    for _ in range(dice.randint(1, 8)):
        x.view(-1)[dice.randrange(x.numel())] = dice.choice(EXTREME)
    return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_recurrences(variant: str, dice: random.Random) -> None:
    op, dtype, batch = op_of(variant), dice.choice(DTYPES), drawn_batch(dice)
    heads = Heads(dice.randint(1, 3), dice.choice((2, 3, 8, 16, 31, 64, 100, 128, 256)))
    if max(batch.slots) >= 0:
        assert_fine(check_recurrence(TARGET, variant, dtype, torch.float32, heads, {"random": batch}))
    call = make_call(variant, *batch, *heads, dtype, torch.float32, CPU)
    wild = replace(call, vectors={name: with_extremes(x, dice) for name, x in call.vectors.items()})
    function = TARGET.op(op, dtype, torch.float32, N=heads.size)
    _, pools = wild.run(function)
    for name, pool in pools.items():
        kept = [index for index in range(len(pool)) if index not in call.live_slots]
        assert torch.equal(pool[kept], call.pools[name][kept])
        assert torch.equal(pool[:, 0], call.pools[name][:, 0])


def test_the_token_shift(dice: random.Random) -> None:
    sizes = {"width": dice.randint(1, 300), "count": dice.randint(1, 6), "longest": dice.randint(1, 40)}
    assert_fine(check_shift_lerp(TARGET, dice.choice(DTYPES), **sizes))


def drawn_product(dice: random.Random, **settings: Any) -> Product:
    sizes = dice.choice((1, 2, 3, 15, 16, 17, 31, 33, 64, 97, 130)), dice.randint(1, 400)
    return Product("random", *sizes, **settings)


def test_products(dice: random.Random) -> None:
    activation = dice.choice((None, "squared_relu", "sigmoid", "tanh"))
    several, gate, add, widened = (dice.random() < 0.5 for _ in range(4))
    after = {"n": 2} if several else {"gate": gate, "add": add, "widened": widened and not add}
    product = drawn_product(dice, activation=activation, **after)
    tokens = [dice.randint(1, 40) for _ in range(3)]
    assert_fine(check_linear(TARGET, product, dice.choice(DTYPES), tokens, (True, False)))
    sizes = ModelSizes(dice.randint(1, 200), 8, 8, {letter: dice.randint(1, 70) for letter in "wavg"})
    assert_fine(check_low_rank(TARGET, sizes, dice.choice(DTYPES), dice.randint(1, 20)))


def test_products_of_whole_numbers(dice: random.Random) -> None:
    tokens = [dice.randint(1, 40) for _ in range(3)]
    for op in ("w8a8", "w8a16"):
        assert_fine(check_whole_numbers(TARGET, op, drawn_product(dice), dice.choice(DTYPES), tokens))
    assert_fine(check_mm8(TARGET, drawn_product(dice), dice.choice(DTYPES), tokens))


@pytest.mark.parametrize("op", ["linear", "w8a8", "w8a16"])
def test_products_of_extreme_numbers(op: str, dice: random.Random) -> None:
    product, dtype = drawn_product(dice), dice.choice(DTYPES)
    table = TARGET.ops(op, dtype)
    x = with_extremes(torch.randn(dice.randint(1, 20), product.K).to(dtype), dice)
    if op == "linear":
        multiply = _packed_linear(table, with_extremes(torch.randn(product.N, product.K).to(dtype), dice))
    else:
        q = torch.randint(-127, 128, (product.N, product.K), dtype=torch.int8)
        packed = table.pack(op, q)
        scale = with_extremes(torch.rand(product.N), dice)
        multiply = lambda x: getattr(table, op)(x, packed, scale)  # noqa: E731
    y = multiply(x)
    assert y.shape == (len(x), product.N)
    assert torch.equal(multiply(x).nan_to_num(7.0), y.nan_to_num(7.0))


def _packed_linear(table: Any, weight: Tensor) -> Callable[[Tensor], Tensor]:
    packed = table.pack("linear", weight)
    return lambda x: table.linear(x, packed, None, None, None, None, False)


def test_sampling(dice: random.Random) -> None:
    size, settings = dice.choice((66, 100, 1000, 5003)), dice.sample(sorted(SETTINGS), 5)
    params = [SETTINGS[name] for name in settings]
    for op in ("sample", "select"):
        assert_fine(check_sample(TARGET, size, params, count=6, steps=3, own=op))
    assert_fine(check_log_normalizer(TARGET, size, dice.randint(1, 9)))
    assert_fine(check_top_tokens(TARGET, size, dice.randint(1, 9)))


def test_sampling_from_extreme_logits(dice: random.Random) -> None:
    size, count = dice.randint(66, 3000), len(SETTINGS)
    drawer = Drawer(TARGET, size, list(SETTINGS.values()), count, "sample")
    slots = torch.arange(count, dtype=torch.int32)
    for _ in range(3):
        logits = torch.stack([with_extremes(torch.randn(size) * 5, dice) for _ in range(count)])
        token_ids, _ = drawer.draw(logits, slots)
        assert ((token_ids >= 0) & (token_ids < size)).all()
        for op in ("top_tokens", "log_normalizer"):
            function = TARGET.op(op, torch.float32, V=size)
            function(*((logits, slots.long(), token_ids.long(), 20) if op == "top_tokens" else (logits,)))


def test_texts(dice: random.Random) -> None:
    from rwkv_batch.cpu_kernels.greedy_encode import GreedyTrie
    from rwkv_batch.text.detokenizer import Detokenizer
    from rwkv_batch.text.stop_strings import StopMatcher, StopStrings

    def some_bytes(longest: int) -> bytes:
        return bytes(dice.choice(b"abc\x00\x80\xe2\xff") for _ in range(dice.randint(0, longest)))

    tokens = {token_id: some_bytes(9) or b"a" for token_id in dice.sample(range(1, 400), dice.randint(1, 90))}
    ids, offsets, _ = GreedyTrie(tokens).encode([some_bytes(200) for _ in range(dice.randint(0, 5))])
    table = [tokens.get(token_id) for token_id in range(400)]
    limits = np.array([dice.choice((-1, 0, 3, 10**9)) for _ in offsets[1:]], np.int64)
    Detokenizer(table).texts(ids, offsets, limits)
    strange = np.array([dice.choice((-1, 0, 399, 400, 2**31 - 1, -(2**31))) for _ in range(20)], np.int32)
    Detokenizer(table).texts(strange, np.array([0, 7, 20]), np.array([-1, 2]))
    matcher = StopMatcher(table, 4)
    matcher.start(1, StopStrings(("ab", "c", "bca"), min_tokens=dice.randint(0, 3)))
    for token_id in dice.choices([*tokens, -5, 2**40], k=60):
        matcher.push(np.array([1]), np.array([token_id]))
