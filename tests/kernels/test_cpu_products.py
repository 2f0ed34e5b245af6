"""Native products: against float64, exact where they must be, and each row the same in any company."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import sanitizers
from mm8_reference import definition
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.cpu_kernels import build, call, linear, low_rank, mm8, products, w8a8, w8a16
from rwkv_batch.models.matrices import product, w8a8_linear
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.low_rank import LowRank, LowRankPair
from rwkv_batch.models.matrices.low_rank import low_rank as low_rank_definition
from rwkv_batch.models.matrices.mm8 import quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear
from rwkv_batch.ops import Implementation

if build.unavailable():
    pytest.skip(str(build.unavailable()), allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PROCESSORS = {
    "this": None,
    "no vector extensions": "-O2 -march=x86-64",
    "AVX-VNNI": "-O1 -march=x86-64-v3 -DEMULATE=256",
    "AVX-512": "-O1 -march=x86-64-v3 -DEMULATE=510",
    "AVX-512 with bfloat16 and VNNI": "-O1 -march=x86-64-v3 -DEMULATE=512",
}
"""Flags that make a library as for another processor, whose instructions are emulated."""

IN_SOAK = ("AVX-512",)
"""Run by `make kernels`; its vectors and its steps without VNNI are also those of other processors here."""

WHOLE_NUMBERS = {"w8a8": w8a8, "w8a16": w8a16}

COUNTS = (1, 2, 3, 5, 13, 31, 100)
"""Numbers of rows that together use every kind of tile, with and without expanded weights."""


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[pytest.mark.soak] if name in IN_SOAK else []) for name in PROCESSORS],
)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    flags = PROCESSORS[request.param]
    if flags is None:
        return build.library()
    if "x86_64" not in platform.machine():
        pytest.skip("emulates x86 processors on x86 only")
    if "v3" in flags and " avx2 " not in build._processor():
        pytest.skip("emulated with AVX2, which this processor lacks")
    out = tmp_path_factory.mktemp("products") / "products.so"
    sources = [str(build.SOURCES / f"{name}.cpp") for name in ("linear", "mm8", "w8a8", "parallel")]
    included = ["-include", str(Path(__file__).with_name("emulated_x86.h"))] if "EMULATE" in flags else []
    common = "g++ -std=c++17 -pthread -fPIC -shared -fno-math-errno -fno-trapping-math -Wno-psabi"
    every = [*common.split(), *flags.split(), *sanitizers.active(), *included, *sources]
    subprocess.run([*every, "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture(autouse=True)
def on_processor(processor: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (products, linear, w8a8):
        monkeypatch.setattr(module, "library", lambda: processor)
    monkeypatch.setattr(call, "library", lambda: processor)


@cache
def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def served(form: str, weight: Tensor) -> Callable[..., Tensor]:
    """Multiplies by a weight in one of its forms."""
    if form == "linear":
        packed = linear.pack(weight)
        return lambda x, **after: linear.linear(x, packed, **after)
    if form in WHOLE_NUMBERS:
        q, scale = w8a8_linear.quantize_w8a8(weight)
        module = WHOLE_NUMBERS[form]
        packed_q = module.pack(q)
        return lambda x, **after: getattr(module, form)(x, packed_q, scale, **after)
    whole = Mm8Linear(quantize_mm8(weight))
    packed_bytes = mm8.pack(whole.weight)
    return lambda x, **after: mm8.mm8(x, packed_bytes, whole.rx, whole.my, whole.ry, whole.corrections, **after)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c_out", "c_in"), [(97, 64), (64, 301), (1, 1), (35, 700)])
def test_dense_products(dtype: torch.dtype, c_out: int, c_in: int) -> None:
    weight = random(c_out, c_in).to(dtype)
    multiply = served("linear", weight)
    for rows in COUNTS:
        x = random(rows, c_in, seed=1).to(dtype)
        y = multiply(x)
        assert y.dtype == dtype
        assert_close(f"{rows} rows", y, x.double() @ weight.double().t(), dtype)


@pytest.mark.parametrize("form", ["linear", "mm8", *WHOLE_NUMBERS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "squared_relu", "sigmoid", "tanh"])
def test_what_follows_a_product(form: str, dtype: torch.dtype, activation: Any) -> None:
    weight, x = random(50, 40).to(dtype) / 3, random(9, 40, seed=1).to(dtype)
    gate, out = random(9, 50, seed=2).to(dtype), random(9, 50, seed=3).to(dtype)
    multiply = served(form, weight)
    plain = multiply(x, dtype=torch.float32)
    assert plain.dtype == torch.float32

    def expected(gate: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        gate, out = (part if part is None else part.float().clone() for part in (gate, out))
        return product.finish(plain.clone(), activation, gate, out)

    assert_close("alone", multiply(x, activation=activation), expected(), dtype)
    assert_close("gate", multiply(x, activation=activation, gate=gate), expected(gate), dtype)
    added = out.clone()
    result = multiply(x, activation=activation, gate=gate, out=added)
    assert result is added
    assert_close("added", added, expected(gate, out), dtype)


@pytest.mark.parametrize("form", ["linear", "mm8", *WHOLE_NUMBERS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_company(form: str, dtype: torch.dtype) -> None:
    """Random batches: how many rows, which of them, and in which order, on one thread and on several."""
    generator = torch.Generator().manual_seed(5)
    weight, x = random(75, 530).to(dtype) / 23, random(600, 530, seed=1).to(dtype)
    multiply = served(form, weight)
    alone = torch.cat([multiply(row[None]) for row in x])
    threads = torch.get_num_threads()
    try:
        for rows in (*COUNTS, *torch.randint(1, 601, (8,), generator=generator).tolist()):
            torch.set_num_threads(1 + rows % 3)
            chosen = torch.randperm(600, generator=generator)[:rows]
            assert torch.equal(multiply(x[chosen]), alone[chosen]), rows
    finally:
        torch.set_num_threads(threads)


def test_products_of_several_matrices() -> None:
    weight, x = random(3, 40, 70), random(3, 8, 70, seed=1)
    multiply = served("linear", weight)
    assert_close("three", multiply(x), x.double() @ weight.double().transpose(1, 2), torch.float32)


@pytest.mark.parametrize("form", WHOLE_NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c_out", "c_in"), [(97, 64), (64, 301), (1, 1), (35, 3000)])
def test_whole_numbers_are_exact(form: str, dtype: torch.dtype, c_out: int, c_in: int) -> None:
    weight = random(c_out, c_in)
    q, scale = w8a8_linear.quantize_w8a8(weight)
    multiply, definition = served(form, weight), getattr(w8a8_linear, form)
    levels = 127 if form == "w8a8" else min(32767, (2**31 - 1) // (127 * c_in))
    for rows in COUNTS:
        x = random(rows, c_in, seed=1).to(dtype)
        x[0] = 0
        own = x.float().abs().amax(1, keepdim=True) / levels
        own[own == 0] = 1
        sums = (x.float() / own).round().to(torch.int64) @ q.to(torch.int64).t()
        assert sums.abs().max() < 2**31
        expected = sums.float() * (own * scale)
        assert torch.equal(multiply(x, dtype=torch.float32), expected), rows
        assert torch.equal(definition(x, q, scale, dtype=torch.float32), expected), rows


@pytest.mark.parametrize("form", WHOLE_NUMBERS)
def test_whole_numbers_of_several_matrices(form: str) -> None:
    weights, x = random(3, 50, 70), random(3, 8, 70, seed=1)
    q, scale = (torch.stack(parts) for parts in zip(*map(w8a8_linear.quantize_w8a8, weights), strict=True))
    module, definition = WHOLE_NUMBERS[form], getattr(w8a8_linear, form)
    got = getattr(module, form)(x, module.pack(q), scale)
    assert torch.equal(got, definition(x, q, scale))
    each = [served(form, weight)(rows) for weight, rows in zip(weights, x, strict=True)]
    assert torch.equal(got, torch.stack(each))


@pytest.mark.parametrize("form", WHOLE_NUMBERS)
def test_whole_numbers_do_not_overflow(form: str) -> None:
    """The largest sum that there can be."""
    weight, x = torch.ones(3, 4000), torch.ones(7, 4000)
    assert_close("sums", served(form, weight)(x), torch.full((7, 3), 4000.0), torch.float32)


@pytest.mark.parametrize("form", WHOLE_NUMBERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_do_not_hide(bad: float, form: str) -> None:
    x = random(3, 40).clone()
    x[1, 7] = bad
    y = served(form, random(50, 40))(x)
    assert y[[0, 2]].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.parametrize("kind", ["normal", "squared_relu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_mm8(dtype: torch.dtype, kind: str) -> None:
    w = quantize_mm8(random(96, 320) / 18)
    multiply = served("mm8", random(96, 320) / 18)
    for rows in COUNTS:
        x = random(rows, 320, seed=1)
        x = (x.relu().square() * 30 if kind == "squared_relu" else x).to(dtype)
        assert_close(f"{rows} rows", multiply(x), x.double() @ definition(w).t(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_pairs(dtype: torch.dtype) -> None:
    inputs = random(3, 9, 64, seed=1).to(dtype)
    packed, plain = [], []
    for source, activation, rank in ((2, "tanh", 8), (0, None, 40), (2, "sigmoid", 17)):
        factors = random(rank, 64, seed=rank).to(dtype) / 8, random(96, rank, seed=rank + 1).to(dtype) / 4
        plain.append(LowRankPair(source, activation, *map(DenseLinear, factors)))  # type: ignore[arg-type]
        down, up = (DenseLinear(linear.pack(factor), Implementation(linear.linear)) for factor in factors)
        packed.append(LowRankPair(source, activation, down, up))  # type: ignore[arg-type]
    got = low_rank.low_rank(inputs, LowRank(tuple(packed), None, None))
    expected = low_rank_definition(inputs.float(), LowRank(tuple(_float(pair) for pair in plain), None, None))
    assert got.dtype == dtype
    assert_close("low_rank", got, expected, dtype, factor=2)


def _float(pair: LowRankPair) -> LowRankPair:
    down, up = (DenseLinear(one.weight.float()) for one in (pair.down, pair.up))
    return pair._replace(down=down, up=up)


def test_no_rows() -> None:
    assert served("linear", random(30, 20))(torch.empty(0, 20)).shape == (0, 30)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": random(4, 21)}, "x: got"),
    ({"x": random(4, 20).double()}, "x: got torch.float64"),
    ({"x": random(1, 4, 20)}, "x: got"),
    ({"gate": random(4, 31)}, "gate: got"),
    ({"out": random(4, 30).bfloat16()}, "out: got torch.bfloat16"),
    ({"activation": "gelu"}, "activation: got 'gelu'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served("linear", random(30, 20))(**{"x": random(4, 20)} | wrong)
