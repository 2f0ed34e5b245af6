"""Products with 8-bit weights against what the bytes mean, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.cuda_kernels import mm8 as module
from rwkv_batch.models.mm8 import Mm8Weight, dequantize_mm8, quantize_mm8
from rwkv_batch.models.mm8_linear import Mm8Linear

pytestmark = pytest.mark.usefixtures("nearest_bfloat16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIMITS = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 5e-4}
"""Error of a product, as a share of the root mean square of the result."""


def make_weight(num_rows: int, depth: int) -> Mm8Weight:
    """Channels of different ranges, some of them without any."""
    weight = torch.randn(num_rows, depth) * depth**-0.5 * torch.exp(torch.randn(depth))
    weight[num_rows // 2] = 0.25
    return quantize_mm8(weight)


def make_inputs(kind: str, num_tokens: int, depth: int) -> Tensor:
    x = torch.randn(num_tokens, depth)
    if kind == "outliers":
        x[:, depth // 3] *= 50
    elif kind == "squared relu":
        x = x.relu().square()
    if num_tokens > 2:
        x[1] = 0
    return x


def relative_error(got: Tensor, exact: Tensor) -> float:
    difference = (got.cpu().double() - exact).nan_to_num(nan=torch.inf)
    return (difference.square().mean() / exact.square().mean()).sqrt().item()


@pytest.fixture
def mm8(backend):
    """`mm8(linear, x)` by the kernel, on whatever device it runs on."""

    def call(linear: Mm8Linear, x: Tensor) -> Tensor:
        function, device = backend.serve("mm8", x.dtype)
        tensors = (x, linear.centred, linear.rx, linear.my, linear.ry, linear.corrections)
        return function(*(tensor.to(device) for tensor in tensors))

    return call


SIZES = [(1, 24, 80), (16, 70, 208)]
IN_FLOAT32 = [(3, 70, 96), (8, 9, 80), (9, 40, 80), (11, 13, 37)]
IN_HALF = [(16, 130, 208), (70, 70, 144)]
CASES = [
    *((*size, dtype) for size in SIZES for dtype in DTYPES),
    *((*size, "float32") for size in IN_FLOAT32),
    *((*size, dtype) for size in IN_HALF for dtype in ("bfloat16", "float16")),
]


@pytest.mark.parametrize(("num_tokens", "num_rows", "depth", "dtype"), CASES)
def test_mm8_is_what_the_bytes_mean(mm8, num_tokens, num_rows, depth, dtype):
    weight, x = make_weight(num_rows, depth), make_inputs("normal", num_tokens, depth).to(DTYPES[dtype])
    exact = x.double() @ dequantize_mm8(weight, torch.float64).t()
    got = mm8(Mm8Linear(weight), x)
    assert got.dtype == x.dtype
    assert relative_error(got, exact) <= LIMITS[dtype]
    reference = Mm8Linear(weight).product(x)
    assert_close("beside the definition", got, reference, dtype, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["outliers", "squared relu"])
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_mm8_of_inputs_that_are_hard(mm8, kind, num_tokens, dtype):
    weight, x = make_weight(48, 512), make_inputs(kind, num_tokens, 512).to(DTYPES[dtype])
    exact = x.double() @ dequantize_mm8(weight, torch.float64).t()
    assert relative_error(mm8(Mm8Linear(weight), x), exact) <= LIMITS[dtype]


@pytest.mark.parametrize("magnitude", [1e-3, 1e4])
def test_mm8_of_any_magnitude(mm8, magnitude):
    """Without the power of two that each row is divided by, float16 would overflow, or have few digits left."""
    weight, x = make_weight(32, 64).scaled(1 / magnitude), (torch.randn(12, 64) * magnitude).half()
    exact = x.double() @ dequantize_mm8(weight, torch.float64).t()
    assert relative_error(mm8(Mm8Linear(weight), x), exact) <= LIMITS["float16"]


@pytest.mark.parametrize(("num_tokens", "dtype"), [(20, "float32"), (70, "bfloat16")])
def test_cuda_mm8_does_not_depend_on_company(cuda_on_cpu, num_tokens, dtype):
    """Up to eight rows, and above, in other places of a tile and in other tiles."""
    p, x = Mm8Linear(make_weight(70, 144)), make_inputs("normal", num_tokens, 144).to(DTYPES[dtype])
    call = partial(module.mm8, centred=p.centred, rx=p.rx, my=p.my, ry=p.ry, corrections=p.corrections)
    whole, few = call(x), call(x[:7])
    assert torch.equal(call(x[-12:].contiguous()), whole[-12:])
    for row in (0, 1, 5):
        assert torch.equal(call(x[row : row + 1].contiguous()), few[row : row + 1])


def test_mm8_of_nothing(mm8):
    linear = Mm8Linear(make_weight(8, 16))
    assert mm8(linear, torch.empty(0, 16)).shape == (0, 8)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x: got torch.float64", dict(x=torch.zeros(2, 32, dtype=torch.float64))),
        ("x: got", dict(x=torch.zeros(32, 2).t())),
        ("centred: got", dict(centred=torch.zeros(8, 33, dtype=torch.int8))),
        ("centred: got torch.uint8", dict(centred=torch.zeros(8, 32, dtype=torch.uint8))),
        ("rx: got", dict(rx=torch.zeros(9))),
        ("my: got", dict(my=torch.zeros(32, dtype=torch.float16))),
        ("ry: got", dict(ry=torch.zeros(33))),
        ("corrections: got", dict(corrections=torch.zeros(8, 4))),
    ],
)
def test_mm8_refuses(backend, name, change):
    function, device = backend.serve("mm8")
    given = dict(
        x=torch.zeros(2, 32),
        centred=torch.zeros(8, 32, dtype=torch.int8),
        rx=torch.zeros(8),
        my=torch.zeros(32),
        ry=torch.zeros(32),
        corrections=torch.zeros(4, 8),
    )
    with pytest.raises(ValueError, match=name):
        function(**{key: value.to(device) for key, value in (given | change).items()})


def test_every_tile_gives_the_same_bits(cuda_on_cpu, monkeypatch):
    linear, x = Mm8Linear(make_weight(130, 208)), make_inputs("normal", 66, 208).bfloat16()
    tensors = (x, linear.centred, linear.rx, linear.my, linear.ry, linear.corrections)
    results = []
    for tile in module.TILES:
        monkeypatch.setattr(module, "TILES", (tile,) * 3)
        results.append(module.mm8(*tensors))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
