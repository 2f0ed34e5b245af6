"""Tests of the CUDA kernels of 8-bit weights alone: tiles, few rows, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from rwkv_batch.cuda_kernels import mm8 as module
from rwkv_batch.models.matrices.mm8 import Mm8Weight, quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear

pytestmark = pytest.mark.usefixtures("nearest_bfloat16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


@pytest.mark.parametrize(("num_tokens", "dtype"), [(20, "float32"), (70, "bfloat16")])
def test_mm8_does_not_depend_on_company(cuda_on_cpu, num_tokens, dtype):
    """Up to eight rows, and above, in other places of a tile and in other tiles."""
    p, x = Mm8Linear(make_weight(70, 144)), make_inputs("normal", num_tokens, 144).to(DTYPES[dtype])
    call = partial(module.mm8, centred=p.weight, rx=p.rx, my=p.my, ry=p.ry, corrections=p.corrections)
    whole, few = call(x), call(x[:7])
    assert torch.equal(call(x[-12:].contiguous()), whole[-12:])
    for row in (0, 1, 5):
        assert torch.equal(call(x[row : row + 1].contiguous()), few[row : row + 1])


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
def test_mm8_refuses(cuda_on_cpu, name, change):
    given = dict(
        x=torch.zeros(2, 32),
        centred=torch.zeros(8, 32, dtype=torch.int8),
        rx=torch.zeros(8),
        my=torch.zeros(32),
        ry=torch.zeros(32),
        corrections=torch.zeros(4, 8),
    )
    with pytest.raises(ValueError, match=name):
        module.mm8(**given | change)


def test_every_tile_gives_the_same_bits(cuda_on_cpu, monkeypatch):
    linear, x = Mm8Linear(make_weight(130, 208)), make_inputs("normal", 66, 208).bfloat16()
    tensors = (x, linear.weight, linear.rx, linear.my, linear.ry, linear.corrections)
    results = []
    for tile in module.TILES:
        monkeypatch.setattr(module, "TILES", (tile,) * 3)
        results.append(module.mm8(*tensors))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
