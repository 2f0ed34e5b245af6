"""Products with int8 weights: mm8 against the matrix it stands for, w8a8 against whole numbers and float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mm8_reference import definition
from running import Session
from tolerances import MM8_TOLERANCES, assert_close
from torch import Tensor

from rwkv_batch.models.matrices.mm8 import quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import Mm8Linear
from rwkv_batch.models.matrices.product import finish
from rwkv_batch.ops import Implementation

pytest.importorskip("triton")

from rwkv_batch.triton_kernels import mm8 as triton_mm8
from rwkv_batch.triton_kernels import w8a8 as triton_w8a8

pytestmark = pytest.mark.usefixtures("nearest_bfloat16")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(kind: str, rows: int, columns: int) -> Tensor:
    x = torch.randn(rows, columns)
    if kind == "squared_relu":
        return x.relu().square() * 30
    if kind == "outliers":
        x[:, ::17] *= 100
    return x * 1e-3 if kind == "small" else x


def kernel(mm8: Callable[..., Tensor]) -> Implementation:
    """The function, with its module's packed weights, if any."""
    return Implementation.of("mm8", sys.modules[mm8.__module__])


def check_mm8(mm8: Callable[..., Tensor], device: torch.device, x: Tensor, num_rows: int) -> None:
    w = quantize_mm8(torch.randn(num_rows, x.shape[1]) / x.shape[1] ** 0.5)
    y = Mm8Linear(w, device, kernel(mm8))(x.to(device))
    exact = x.double() @ definition(w).t()
    assert (y.dtype, y.shape) == (x.dtype, exact.shape)
    error = ((y.cpu() - exact).norm() / exact.norm()).item()
    assert error <= MM8_TOLERANCES[str(x.dtype).removeprefix("torch.")], error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "squared_relu", "outliers", "small"])
def test_mm8(backend, kind, dtype):
    mm8, device = backend.serve("mm8", dtype)
    check_mm8(mm8, device, inputs(kind, 5, 320).to(dtype), 96)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 16), (17, 129, 70), (67, 77, 131), (3, 300, 1), (2, 2500, 8)], ids=str)
def test_mm8_of_any_size(backend, shape, dtype):
    rows, depth, num_rows = shape
    mm8, device = backend.serve("mm8", dtype)
    check_mm8(mm8, device, inputs("normal", rows, depth).to(dtype), num_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_tile_of_mm8(dtype, monkeypatch):
    for tile in {choice.tile for choice in triton_mm8.CHOICES[dtype]}:
        monkeypatch.setattr(triton_mm8, "choose_tile", lambda *size, tile=tile: tile)
        check_mm8(triton_mm8.mm8, DEVICE, inputs("normal", tile.tokens + 1, 150).to(dtype), tile.rows + 3)


def test_mm8_stays_within_float16(backend):
    """The result is in range, the sum over q - 128 by itself would not be."""
    mm8, device = backend.serve("mm8", torch.float16)
    w = quantize_mm8(torch.where(torch.randn(16, 4096) > 2, -1e-3, 1e-3))
    x = torch.full((2, 4096), 10000.0, dtype=torch.float16)
    assert (w.q[:, 0].double() - 128) @ w.ry.double() * 10000 > torch.finfo(torch.float16).max
    assert_close("mm8", Mm8Linear(w, device, kernel(mm8))(x.to(device)), x.double() @ definition(w).t(), torch.float16)


def test_mm8_of_zeros_and_of_no_rows(backend):
    mm8, device = backend.serve("mm8")
    layer = Mm8Linear(quantize_mm8(torch.randn(30, 20)), device, kernel(mm8))
    assert torch.equal(layer(torch.zeros(3, 20, device=device)).cpu(), torch.zeros(3, 30))
    assert layer(torch.zeros(0, 20, device=device)).shape == (0, 30)


@pytest.mark.parametrize("name", ["x", "centred", "rx", "my", "ry", "corrections"])
def test_wrong_arguments_of_mm8_are_refused(name):
    layer = Mm8Linear(quantize_mm8(torch.randn(32, 16)), DEVICE)
    arguments = {"x": torch.zeros(2, 16, device=DEVICE), "centred": layer.weight}
    arguments |= {key: getattr(layer, key) for key in ("rx", "my", "ry", "corrections")}
    for wrong in (arguments[name].double(), arguments[name][..., :-1]):
        with pytest.raises(ValueError, match=r"got .* expected"):
            triton_mm8.mm8(**arguments | {name: wrong})


# int8 weights and int8 inputs.


def whole_numbers(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows as whole numbers in [-127, 127], halves to the even one, and the scale of each row; all in float32."""
    values = x.float().numpy()
    peak = np.abs(values).max(1)
    scale = np.where(peak == 0, np.float32(1), peak / np.float32(127)).astype(np.float32)
    return np.clip(np.rint(values / scale[:, None]), -127, 127).astype(np.int32), scale


def product_of_whole_numbers(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    levels, x_scale = whole_numbers(x)
    sums = levels @ q.numpy().astype(np.int32).T
    return torch.from_numpy(sums.astype(np.float32) * (x_scale[:, None] * scale.numpy()[None, :]))


def quantized(num_rows: int, depth: int) -> tuple[Tensor, Tensor]:
    q, scale = whole_numbers(torch.randn(num_rows, depth))
    return torch.from_numpy(q.astype(np.int8)), torch.from_numpy(scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16, 16), (18, 80, 72), (67, 77, 131), (3, 2500, 1)], ids=str)
def test_w8a8_is_its_definition(shape, dtype):
    rows, depth, num_rows = shape
    x = inputs("outliers", rows, depth).to(dtype)
    x[0] = 0
    q, scale = quantized(num_rows, depth)
    y = triton_w8a8.w8a8(x.to(DEVICE), q.to(DEVICE), scale.to(DEVICE))
    assert torch.equal(y.cpu(), product_of_whole_numbers(x, q, scale).to(dtype))


def test_w8a8_rounds_halves_to_the_even_number():
    """Peak 127: the inputs are their own levels."""
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]]).repeat(1, 2)
    eye = (torch.eye(16) * 100).to(torch.int8)
    y = triton_w8a8.w8a8(x.to(DEVICE), eye.to(DEVICE), torch.full((16,), 0.01, device=DEVICE))
    assert y.cpu().round().tolist()[0][:8] == [127, 0, 2, 2, 0, -2, -2, 126]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "epilogue",
    [
        dict(activation="squared_relu", gate=True),
        dict(activation="sigmoid"),
        dict(gate=True, out=True),
        dict(dtype=torch.float32),
    ],
    ids=str,
)
def test_what_follows_w8a8(epilogue: dict[str, Any], dtype):
    x, (q, scale) = inputs("normal", 5, 80).to(dtype), quantized(40, 80)
    extra = {name: torch.randn(5, 40).to(dtype) if value is True else value for name, value in epilogue.items()}
    given: Any = {name: v.to(DEVICE, copy=True) if isinstance(v, Tensor) else v for name, v in extra.items()}
    y = triton_w8a8.w8a8(x.to(DEVICE), q.to(DEVICE), scale.to(DEVICE), **given)
    assert "out" not in given or y is given["out"]
    exact = product_of_whole_numbers(x, q, scale).double()
    wide: Any = {name: v.double() if isinstance(v, Tensor) else v for name, v in extra.items()} | {"dtype": None}
    assert y.dtype == extra.get("dtype", dtype)
    assert_close("w8a8", y, finish(exact, **wide), dtype)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_inputs_of_w8a8_that_are_not_finite_do_not_hide(bad):
    x, (q, scale) = inputs("normal", 3, 80), quantized(40, 80)
    x[1, 7] = bad
    y = triton_w8a8.w8a8(x.to(DEVICE), q.to(DEVICE), scale.to(DEVICE)).cpu()
    assert y[[0, 2]].isfinite().all()
    assert y[1].isnan().all()


def test_rows_of_w8a8_do_not_depend_on_company():
    x, (q, scale) = inputs("outliers", 130, 80).bfloat16().to(DEVICE), quantized(72, 80)
    q, scale = q.to(DEVICE), scale.to(DEVICE)
    expected = triton_w8a8.w8a8(x, q, scale)
    for rows in (slice(0, 1), slice(70, 71), slice(60, 80)):
        assert torch.equal(triton_w8a8.w8a8(x[rows].contiguous(), q, scale), expected[rows])


@pytest.mark.parametrize("name", ["x", "q", "scale", "gate", "out"])
def test_wrong_arguments_of_w8a8_are_refused(name):
    q, scale = quantized(32, 16)
    arguments = {"x": torch.zeros(2, 16), "q": q, "scale": scale, "gate": torch.zeros(2, 32), "out": torch.zeros(2, 32)}
    arguments = {key: value.to(DEVICE) for key, value in arguments.items()}
    for wrong in (arguments[name].double(), arguments[name][..., :-1]):
        with pytest.raises(ValueError, match=r"got .* expected"):
            triton_w8a8.w8a8(**arguments | {name: wrong})


def test_a_quantised_model_runs_by_the_kernel_and_its_rows_stay_invariant(checkpoint_file):
    path = checkpoint_file("7.0", n_layer=1, n_embd=64, n_ffn=64, vocab=33)
    settings: dict[str, Any] = dict(quantization="int8", batch_invariant=True, backend="triton")
    alone, session = Session(path, **settings), Session(path, **settings)
    assert ("mm8", "triton") in {(choice.op, choice.backend) for choice in alone.model.ops.choices}
    want = torch.cat([alone.feed({4: [3]})[4], alone.feed({4: [9]})[4]])
    assert torch.equal(session.feed({0: [1, 2, 8], 4: [3, 9]})[4], want)
    assert_close("logits", want, Session(path, quantization="int8").feed({4: [3, 9]})[4], torch.float32, 20)
