"""Weight matrices: the 8-bit form against its definition, dense and 8-bit products, and their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, write_checkpoint
from matrix_reader import matrix_reader
from mm8_reference import definition
from tolerances import TOLERANCES, assert_close
from torch import Tensor

from rwkv_batch.errors import CheckpointError, ConfigurationError
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.matrices import mm8, mm8_linear
from rwkv_batch.models.matrices.linear import DenseLinear, FixedRowsLinear, RemoteLinear
from rwkv_batch.models.matrices.mm8 import Mm8Weight, dequantize_mm8, quantize_mm8
from rwkv_batch.models.matrices.mm8_linear import MM8_DEFINITION, Mm8Linear
from rwkv_batch.models.matrices.packed import PackedLinear, can_pack
from rwkv_batch.models.matrices.product import LINEAR_DEFINITION, Linear
from rwkv_batch.models.matrices.quantization import weight_format
from rwkv_batch.models.matrices.w8a8_linear import W8A8Linear, quantize_w8a8, w8a8
from rwkv_batch.models.weights import Weights
from rwkv_batch.ops import Implementation, OpTable

DTYPES = [getattr(torch, name) for name in TOLERANCES]
SHAPES = [(96, 160), (160, 96), (128, 128), (1, 40), (40, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_quantized_weight_is_within_half_a_level(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    w = quantize_mm8(weight)
    level = 16 * 16 * w.rx.double()[:, None] * w.ry.double() / 256
    assert w.q.shape == shape[::-1]
    assert ((definition(w) - weight).abs() <= 0.5 * level + 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_quantizing_in_blocks_changes_nothing(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(*shape).to(torch.bfloat16)
    whole = quantize_mm8(weight)
    monkeypatch.setattr(mm8, "_BLOCK_ELEMENTS", 3 * shape[1])
    blocks = quantize_mm8(weight)
    for name in ("q", "mx", "rx", "my", "ry"):
        assert torch.equal(getattr(blocks, name), getattr(whole, name)), name
    assert torch.equal(dequantize_mm8(blocks, torch.float32), dequantize_mm8(whole, torch.float32))


def test_quantizing_leaves_the_weight_alone() -> None:
    weight = random(40, 30)
    quantize_mm8(weight)
    assert torch.equal(weight, random(40, 30))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_channels_without_range(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    weight[2] = weight[2, 0]
    weight[:, 3] = -2.0
    restored = dequantize_mm8(quantize_mm8(weight), torch.float32)
    assert torch.isfinite(restored).all()
    constant = torch.full(shape, 0.25)
    assert torch.equal(dequantize_mm8(quantize_mm8(constant), torch.float32), constant)
    zero = torch.zeros(shape)
    assert torch.equal(dequantize_mm8(quantize_mm8(zero), torch.float32), zero)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    tensors = make_checkpoint("4", n_layer=1)
    tensors["head.weight"][3, 5] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize_mm8(tensors["head.weight"])
    checkpoint = open_checkpoint(write_checkpoint(tensors, tmp_path / "bad.pth"))
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        weight_format("int8").load(matrix_reader(checkpoint), "head.weight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantized_weight_is_its_definition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    w = quantize_mm8(random(*shape))
    restored = dequantize_mm8(w, dtype)
    assert restored.dtype == dtype
    assert restored.is_contiguous()
    assert_close("dequantize_mm8", restored, definition(w), dtype)


@pytest.mark.parametrize("field", ["mx", "rx", "my", "ry"])
def test_misshapen_metadata_are_refused(field: str) -> None:
    w = quantize_mm8(random(6, 10))
    vectors = {name: getattr(w, name) for name in ("q", "mx", "rx", "my", "ry")}
    with pytest.raises(ValueError, match=field):
        Mm8Weight(**vectors | {field: vectors[field][:-1]})


def inputs(kind: str, rows: int, columns: int) -> Tensor:
    x = random(rows, columns, seed=1)
    if kind == "squared_relu":
        return x.relu().square() * 30
    if kind == "outliers":
        x[:, ::17] *= 100
    return x * 1e-3 if kind == "small" else x


@pytest.mark.parametrize("kind", ["normal", "squared_relu", "outliers", "small"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9, 30])
@pytest.mark.parametrize("shape", [(96, 320), (320, 96)])
def test_product_of_the_8_bit_form(shape: tuple[int, int], rows: int, dtype: torch.dtype, kind: str) -> None:
    w = quantize_mm8(random(*shape) / shape[1] ** 0.5)
    x = inputs(kind, rows, shape[1]).to(dtype)
    y = Mm8Linear(w)(x)
    assert y.dtype == dtype
    assert_close(f"Mm8Linear of {kind}", y, x.double() @ definition(w).t(), dtype)


@pytest.mark.parametrize("kind", ["normal", "squared_relu"])
def test_rounding_errors_do_not_add_up(kind: str) -> None:
    """The limit is that of three independent roundings to bfloat16 (inputs, sum, result) of 1.7e-3 each."""
    w = quantize_mm8(random(1024, 512))
    x = inputs(kind, 32, 512).bfloat16()
    exact = x.double() @ definition(w).t()
    assert (Mm8Linear(w)(x) - exact).norm() / exact.norm() < 3.3e-3


def test_product_stays_within_float16() -> None:
    """With large inputs and one-sided weights the result is in range, although the sum over q - 128 alone is not."""
    weight = torch.where(random(64, 4096) > 2, -1e-3, 1e-3)
    x = torch.full((20, 4096), 10000.0, dtype=torch.float16)
    w = quantize_mm8(weight)
    assert (w.q[:, 0].double() - 128) @ w.ry.double() * 10000 > torch.finfo(torch.float16).max
    assert_close("Mm8Linear", Mm8Linear(w)(x), x.double() @ definition(w).t(), torch.float16)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_product_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = quantize_mm8(random(70, 40))
    x = random(rows, 40, seed=1)
    whole = Mm8Linear(w)(x)
    monkeypatch.setattr(mm8_linear, "_SCRATCH_BYTES", 16 * 40 * 4)
    assert whole.shape == (rows, 70)
    assert_close("in blocks", Mm8Linear(w)(x), whole, torch.float32)


def test_rows_of_zeros_give_zeros_times_the_weight() -> None:
    w = quantize_mm8(random(30, 20))
    x = torch.zeros(3, 20)
    x[1] = 1.0
    y = Mm8Linear(w)(x)
    assert torch.equal(y[[0, 2]], torch.zeros(2, 30))
    assert_close("row 1", y[1], definition(w).sum(1), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_dense_product(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    weight, x = random(96, 160).to(weight_dtype), random(5, 160, seed=1).to(dtype)
    y = DenseLinear(weight)(x)
    assert y.dtype == dtype
    exact = x.to(weight_dtype).double() @ weight.double().t()
    coarser = max(dtype, weight_dtype, key=lambda d: torch.finfo(d).eps)
    assert_close("DenseLinear", y, exact, coarser)


def test_memory_is_one_byte_a_weight() -> None:
    dense, packed = DenseLinear(random(300, 200).to(torch.bfloat16)), Mm8Linear(quantize_mm8(random(300, 200)))
    assert dense.nbytes == 2 * 300 * 200
    assert packed.nbytes == 300 * 200 + (5 * 300 + 2 * 200) * 4
    for layer in (dense, packed):
        assert (layer.in_features, layer.out_features) == (200, 300)


def test_weight_formats_load_a_matrix(tmp_path: Path) -> None:
    tensors = make_checkpoint("6.0", n_layer=1, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(write_checkpoint(tensors, tmp_path / "model.pth"))
    name = "blocks.0.ffn.key.weight"
    weight = tensors[name]

    dense = weight_format(None).load(matrix_reader(checkpoint), name, scale=0.25)
    assert isinstance(dense, DenseLinear)
    assert torch.equal(dense.weight, weight.float() / 4)

    packed = weight_format("int8").load(matrix_reader(checkpoint), name, scale=0.25)
    assert isinstance(packed, Mm8Linear)
    x = random(3, weight.shape[1])
    assert_close("scaled", packed(x) * 4, Mm8Linear(quantize_mm8(weight))(x), torch.float32)

    with pytest.raises(ConfigurationError, match=r"got 'no-such', expected null, 'int8'.* or '"):
        weight_format("no-such")


def test_an_unscaled_matrix_of_the_right_dtype_is_not_copied(tmp_path: Path) -> None:
    tensors = make_checkpoint("4", n_layer=1)
    checkpoint = open_checkpoint(write_checkpoint(tensors, tmp_path / "model.pth"))
    layer = weight_format(None).load(matrix_reader(checkpoint), "head.weight")
    assert isinstance(layer, DenseLinear)
    assert layer.weight.data_ptr() == checkpoint.tensor("head.weight").data_ptr()


W8A8_DEFINITION = Implementation(w8a8)
MAKERS: dict[str, tuple[Callable[[Implementation], Linear], Implementation]] = {
    "dense": (lambda op: DenseLinear(random(30, 20), op), LINEAR_DEFINITION),
    "mm8": (lambda op: Mm8Linear(quantize_mm8(random(30, 20)), op=op), MM8_DEFINITION),
    "w8a8": (lambda op: W8A8Linear(*quantize_w8a8(random(30, 20)), op), W8A8_DEFINITION),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("writes_into", [False, True])
def test_a_product_is_written_where_it_is_wanted(kind: str, writes_into: bool) -> None:
    """The op writes there if it declares `writes_into`; else its result is copied."""
    make, definition_op = MAKERS[kind]
    written = []

    def op(*args: Any, into: Tensor | None = None, **after: Any) -> Tensor:
        y = definition_op.function(*args, **after)
        if into is None:
            return y
        written.append(into)
        return into.copy_(y)

    matrix = make(replace(definition_op, function=op, writes_into=writes_into))
    x, y = random(5, 20, seed=1), torch.full((5, 30), torch.nan)
    matrix.write(x, y)
    assert torch.equal(y, make(definition_op)(x, dtype=torch.float32))
    assert [one is y for one in written] == [True] * writes_into


def test_the_epilogue_of_mm8_is_the_kernels_where_the_kernel_has_one() -> None:
    weight, x, gate, out = quantize_mm8(random(30, 20)), random(5, 20, seed=1), random(5, 30), random(5, 30, seed=2)
    after: list[Any] = []

    def op(*args: Any) -> Tensor:
        after[:] = args[6:]
        return MM8_DEFINITION.function(*args[:6])

    def multiply(has_epilogue: bool) -> Tensor:
        return Mm8Linear(weight, op=Implementation(op, has_epilogue=has_epilogue))(x, "sigmoid", gate, out.clone())

    product = multiply(has_epilogue=True)
    assert after[0] == "sigmoid" and after[1] is gate and torch.equal(after[2], out) and after[3] is None
    assert_close("epilogue", multiply(has_epilogue=False), out + torch.sigmoid(product) * gate, torch.float32)
    assert not after


@pytest.mark.parametrize("rows_independent", [False, True])
def test_a_matrix_declares_whether_its_rows_are_independent(rows_independent: bool) -> None:
    dense, int8, whole = (make(replace(op, rows_independent=rows_independent)) for make, op in MAKERS.values())
    assert dense.rows_independent == int8.rows_independent == rows_independent
    assert whole.rows_independent  # sums of whole numbers are exact
    assert FixedRowsLinear(dense).rows_independent
    assert RemoteLinear(dense, torch.device("cpu")).rows_independent == rows_independent
    if can_pack(random(30, 20)):
        assert not PackedLinear(random(30, 20)).rows_independent


@pytest.mark.parametrize("quantization", [None, "int8", "w8a8"])
@pytest.mark.parametrize("rows_independent", [False, True])
def test_only_matrices_whose_rows_depend_on_each_other_are_cut_into_pieces(
    quantization: str | None, rows_independent: bool, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(write_checkpoint(make_checkpoint("4", n_layer=1), tmp_path / "model.pth"))

    def kernel(*args: Any, **after: Any) -> Tensor:
        return LINEAR_DEFINITION.function(*args, **after)

    ops = OpTable(
        {
            "linear": Implementation(kernel, rows_independent=rows_independent),
            "mm8": replace(MM8_DEFINITION, rows_independent=rows_independent),
            "w8a8": W8A8_DEFINITION,
        }
    )
    for batch_invariant in (False, True):
        weights = Weights(checkpoint, torch.float32, quantization, torch.device("cpu"), ops, batch_invariant)
        is_cut = batch_invariant and not rows_independent and quantization != "w8a8"
        assert isinstance(weights.linear("head.weight"), FixedRowsLinear) == is_cut
