"""Triton's `linear` against its definition: every epilogue, size and tile; interpreted where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernels.shift_cases import DEVICE, WIDTH, garbage_in_new_tensors, random
from torch import Tensor

from rwkv_batch.models.matrices import product

pytest.importorskip("triton")

from kernels.glue_cases import DTYPES, assert_both, call, modules, ops

pytestmark = pytest.mark.usefixtures("nearest_bfloat16", "device_is_served")

zeros = partial(torch.zeros, device=DEVICE)

EPILOGUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "key": {"activation": "squared_relu"},
    "key with gate": {"activation": "squared_relu", "gate": True},
    "receptance": {"activation": "sigmoid"},
    "tanh": {"activation": "tanh"},
    "value": {"out": True},
    "value of v4": {"gate": True, "out": True},
    "all": {"activation": "tanh", "gate": True, "out": True},
    "head": {"dtype": torch.float32},
}


def check_linear(
    function: Callable[..., Tensor], shape: Sequence[int], num_rows: int, dtype: torch.dtype, epilogue: dict[str, Any]
) -> None:
    """One product against the definition, in its own dtype and in float64."""
    x = random(*shape, dtype=dtype)
    weight = random(*shape[:-2], num_rows, shape[-1], dtype=dtype, scale=shape[-1] ** -0.5)
    extra = dict(epilogue)
    for name in ("gate", "out"):
        if name in extra:
            extra[name] = random(*shape[:-1], num_rows, dtype=dtype)

    def arguments(change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {name: change(value) if isinstance(value, Tensor) else value for name, value in extra.items()}

    reference = product.linear(x, weight, **arguments(Tensor.clone))
    exact = product.linear(x.double(), weight.double(), **(arguments(Tensor.double) | {"dtype": None}))
    given = arguments(Tensor.clone)
    with garbage_in_new_tensors():
        got = function(x, weight, **given)
    assert "out" not in given or got is given["out"]
    assert_both("y", got, reference, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_linear(epilogue, dtype):
    check_linear(ops["linear"], (5, WIDTH), 72, dtype, EPILOGUES[epilogue])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 16), (17, 129, 70), (65, 77, 131), (3, 300, 1)], ids=str)
@pytest.mark.parametrize("fixed_tiles", [False, True], ids=["any tile", "fixed tiles"])
def test_linear_of_any_size(shape, dtype, fixed_tiles):
    num_tokens, depth, num_rows = shape
    function = partial(ops["linear"], fixed_tiles=fixed_tiles)
    check_linear(function, (num_tokens, depth), num_rows, dtype, EPILOGUES["all"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fixed_tiles", [False, True], ids=["any tile", "fixed tiles"])
def test_several_products_at_once(dtype, fixed_tiles):
    function = partial(ops["linear"], fixed_tiles=fixed_tiles)
    check_linear(function, (3, 18, WIDTH), 72, dtype, EPILOGUES["plain"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tile_of_the_table(dtype):
    module = modules["linear"]
    tables = (module.CHOICES[dtype], module.FIXED[dtype], module.FUSED if dtype != torch.float32 else ())
    tiles = {choice.tile for table in tables for choice in table if choice.tile}
    for tile in tiles:
        with patch.object(module, "choose_tile", return_value=tile):
            check_linear(ops["linear"], (tile.tokens + 1, 150), tile.rows + 3, dtype, EPILOGUES["value of v4"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["plain", "key with gate", "value", "value of v4", "all"])
@pytest.mark.parametrize("num_products", [0, 2])
def test_the_library_and_what_follows(num_products, epilogue, dtype):
    shape = (num_products, 5, WIDTH) if num_products else (5, WIDTH)
    with patch.object(modules["linear"], "choose_tile", return_value=None):
        check_linear(ops["linear"], shape, 72, dtype, EPILOGUES[epilogue])


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [8, 50, 300])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_linear_on_a_gpu(num_tokens, epilogue):
    """Sizes on both sides of the table; the library widens a result on GPUs only."""
    check_linear(ops["linear"], (num_tokens, 768), 8192, torch.bfloat16, EPILOGUES[epilogue])


@pytest.mark.parametrize("dtype", DTYPES)
def test_fixed_tiles_do_not_depend_on_company(dtype):
    x, weight = random(130, WIDTH, dtype=dtype), random(72, WIDTH, dtype=dtype)
    gate = random(130, 72, dtype=dtype)

    def multiply(tokens: slice) -> Tensor:
        return call("linear", x[tokens], weight, "squared_relu", gate[tokens], fixed_tiles=True)

    expected = multiply(slice(0, 130))
    for tokens in (slice(0, 1), slice(70, 71), slice(63, 66), slice(1, 129)):
        assert torch.equal(multiply(tokens), expected[tokens])


def test_the_table_of_tiles():
    choose, fixed = modules["linear"].choose_tile, modules["linear"].fixed_tile
    half = torch.bfloat16
    assert choose(1, 768, 768, half, True).tokens == 16
    assert choose(17, 3 * 768, 768, half, True).tokens == 64
    assert choose(17, 768, 3072, half, True) is None
    assert choose(17, 768, 3072, half, False) == fixed(768, half)
    assert choose(257, 768, 768, half, True) is choose(8192, 65536, 4096, half, True) is None
    assert choose(17, 768, 768, torch.float32, True) is None
    assert choose(256, 8192, 2048, half, True) is choose(1025, 8192, 2048, half, True, True) is None
    assert choose(256, 8192, 2048, half, True, True) is choose(1024, 8192, 2048, half, True, True) is not None
    assert choose(256, 2048, 8192, half, True, True) is None
    assert fixed(4095, half).rows < fixed(65536, half).rows


@pytest.mark.parametrize(
    "name, change",
    [
        ("x", {"x": zeros(WIDTH)}),
        ("x", {"x": zeros(5, 2 * WIDTH)[:, ::2]}),
        ("x", {"x": zeros(5, WIDTH, device="meta")}),
        ("weight", {"x": zeros(5, WIDTH).half()}),
        ("weight", {"x": zeros(2, 5, WIDTH)}),
        ("weight", {"weight": zeros(WIDTH, 72).t()}),
        ("gate", {"gate": zeros(5, 71)}),
        ("gate", {"gate": zeros(5, 72).half()}),
        ("out", {"out": zeros(4, 72)}),
        ("out", {"out": zeros(72, 5).t()}),
    ],
)
def test_linear_refuses(name, change):
    arguments = {"x": zeros(5, WIDTH), "weight": zeros(72, WIDTH)} | change
    with pytest.raises(ValueError, match=f"^{name}: got"):
        ops["linear"](**arguments)
