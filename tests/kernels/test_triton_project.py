"""Triton's `project` against its definition; interpreted where there is no GPU."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernels.shift_cases import WIDTH, random

from rwkv_batch.models.matrices import low_rank
from rwkv_batch.models.matrices.linear import StackedLinear
from rwkv_batch.models.matrices.product import linear
from rwkv_batch.models.matrices.projection import Projection, project
from rwkv_batch.ops import OpTable

pytest.importorskip("triton")

from kernels.glue_cases import DTYPES, ODD, V7, Pair, assert_both, call, make_pairs, modules, ops, stacked

pytestmark = pytest.mark.usefixtures("nearest_bfloat16", "device_is_served")

OUT = 72
TABLE = OpTable.of(low_rank=low_rank.low_rank)


def make(pairs: tuple[Pair, ...], count: int, dtype: torch.dtype, fixed_tiles: bool = True) -> Projection:
    weight = random(count, OUT, WIDTH, dtype=dtype, scale=WIDTH**-0.5)
    matrices = StackedLinear(weight, linear, weight.nbytes, count)
    return Projection(matrices, make_pairs(pairs, WIDTH, OUT, dtype), fixed_tiles)


def in_float64(p: Projection, pairs: tuple[Pair, ...]) -> Projection:
    matrices = StackedLinear(p.matrices.weight.double(), linear, 0, len(p.matrices))
    assert p.low_rank.down is not None and p.low_rank.up is not None
    return Projection(matrices, stacked(pairs, p.low_rank.down.double(), p.low_rank.up.double()))


def results(found: Any) -> torch.Tensor:
    matrices, pairs = found
    return torch.cat([torch.stack([*matrices]), pairs])


def check(pairs: tuple[Pair, ...], count: int, num_tokens: int, dtype: torch.dtype) -> None:
    p = make(pairs, count, dtype)
    inputs = random(max(count, *(1 + source for source, *_ in pairs)), num_tokens, WIDTH, dtype=dtype)
    exact = project(inputs.double(), in_float64(p, pairs), TABLE)
    reference = project(inputs, p, TABLE)
    assert_both("y", results(call("project", inputs, p, None)), results(reference), results(exact), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 66])
def test_project(num_tokens, dtype):
    check(V7, 3, num_tokens, dtype)


def test_one_matrix_and_ranks_of_any_size():
    check(ODD, 1, 3, torch.bfloat16)


def test_every_tile_of_the_table():
    for tile in {choice.tile for choice in modules["project"].CHOICES if choice.tile}:
        with patch.object(modules["project"], "choose_tile", return_value=tile):
            check(V7, 3, tile.tokens + 1, torch.bfloat16)


def test_project_does_not_depend_on_company():
    inputs, p = random(6, 66, WIDTH, dtype=torch.bfloat16), make(V7, 3, torch.bfloat16)
    expected = results(call("project", inputs, p, None))
    for tokens in (slice(0, 1), slice(40, 41), slice(63, 66)):
        assert torch.equal(results(call("project", inputs[:, tokens].contiguous(), p, None)), expected[:, tokens])


def test_what_is_left_to_the_definition():
    """Packed and quantized weights, matrices that are not stacked, no tokens, and many tokens."""
    inputs, p = random(6, 5, WIDTH, dtype=torch.bfloat16), make(V7, 3, torch.bfloat16)
    expected = results(project(inputs, p, TABLE))
    levels = StackedLinear(
        torch.zeros(3, OUT, WIDTH, dtype=torch.int8), lambda x, w: p.matrices(x)[0].new_ones(3, 5, OUT), 0, 3
    )
    assert (results(ops["project"](inputs, p._replace(matrices=levels), TABLE))[:3] == 1).all()
    with patch.object(modules["project"], "choose_tile", return_value=None):
        assert torch.equal(results(ops["project"](inputs, p, TABLE)), expected)
    assert results(ops["project"](inputs[:, :0], p, TABLE)).shape == (7, 0, OUT)


def test_the_table_of_tiles():
    choose, half = modules["project"].choose_tile, torch.bfloat16
    assert choose(16, 6656, 2048, half, False).tokens == 16
    assert choose(256, 6656, 2048, half, False) is choose(1024, 6656, 2048, half, False)
    assert choose(1025, 6656, 2048, half, False) is choose(1, 6656, 2048, torch.float32, False) is None
    assert choose(1, 6656, 2048, half, True) is choose(8192, 6656, 2048, half, True)


def test_project_refuses():
    p, inputs = make(V7, 3, torch.float32), random(6, 4, WIDTH)
    for wrong, given, name in (
        (inputs[0], p, "inputs, p"),
        (inputs[:5], p, "inputs"),
        (inputs.half(), p, "down"),
        (inputs, p._replace(low_rank=p.low_rank._replace(up=p.low_rank.up[1:])), "up"),
        (inputs, p._replace(matrices=StackedLinear(p.matrices.weight[..., 1:], linear, 0, 3)), "weight"),
        (inputs, p._replace(matrices=StackedLinear(random(7, OUT, WIDTH), linear, 0, 7)), "inputs"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            ops["project"](wrong, given, TABLE)
