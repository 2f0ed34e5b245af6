"""Triton's twins of the ops around the recurrences: norms, products, gates; interpreted where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernels.shift_cases import DEVICE, WIDTH, Shift, garbage_in_new_tensors, ragged, random
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.models import rwkv7
from rwkv_batch.models.architecture import LayerState
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.matrices import low_rank, product
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.low_rank import LowRank, LowRankPair
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.models.rows import Rows
from rwkv_batch.ops import resolve

pytest.importorskip("triton")

from triton.runtime import interpreter

pytestmark = pytest.mark.usefixtures("nearest_bfloat16")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ("shift_lerp", "linear", "low_rank", "deep_embed")

modules = {name: import_module(f"rwkv_batch.triton_kernels.{name}") for name in OPS}
ops: dict[str, Callable[..., Any]] = {name: getattr(module, name) for name, module in modules.items()}


@pytest.fixture(autouse=True)
def device_is_served() -> None:
    reason = modules["linear"].unsupported_reason(DEVICE, torch.float32, {})
    if reason:
        pytest.skip(reason)


zeros = partial(torch.zeros, device=DEVICE)


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    with garbage_in_new_tensors():
        return ops[name](*args, **kwargs)


def assert_both(name: str, got: Tensor, reference: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Like the definition, which rounds after each step, and at least as near to what is right."""
    assert got.dtype == reference.dtype
    assert_close(f"{name} against float64", got, exact, dtype)
    assert_close(f"{name} against the reference", got, reference, dtype, 4.0)


# One matrix, with what follows the product.

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
    tiles = {choice.tile for table in (module.CHOICES, module.FIXED) for choice in table[dtype] if choice.tile}
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
    assert fixed(4095, half).rows < fixed(65536, half).rows


# Low-rank pairs.

Pair = tuple[int, int, product.Activation | None]
"""Its source, its rank, and its activation."""
V7: tuple[Pair, ...] = ((3, 24, "tanh"), (4, 40, None), (5, 70, "sigmoid"), (2, 8, None))
V6: tuple[Pair, ...] = tuple((0, 8, "tanh") for _ in range(5))
ODD: tuple[Pair, ...] = ((1, 1, "squared_relu"), (0, 33, "tanh"))


def make_pairs(pairs: Sequence[Pair], width: int, out_width: int, dtype: torch.dtype) -> LowRank:
    down, up = LowRank.stack(
        [random(width, rank, dtype=dtype, scale=width**-0.5) for _, rank, _ in pairs],
        [random(rank, out_width, dtype=dtype, scale=rank**-0.5) for _, rank, _ in pairs],
    )
    return stacked(pairs, down, up)


def stacked(pairs: Sequence[Pair], down: Tensor, up: Tensor) -> LowRank:
    made, start = [], 0
    for source, rank, activation in pairs:
        factors = DenseLinear(down[start : start + rank]), DenseLinear(up[start : start + rank].t())
        made.append(LowRankPair(source, activation, *factors))
        start += rank
    return LowRank(tuple(made), down, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", [V7, V6, ODD], ids=["v7", "v6", "odd"])
@pytest.mark.parametrize("num_tokens", [1, 66])
def test_low_rank(pairs, num_tokens, dtype):
    inputs = random(1 + max(source for source, *_ in pairs), num_tokens, WIDTH, dtype=dtype)
    p = make_pairs(pairs, WIDTH, 72, dtype)
    reference = low_rank.low_rank(inputs, p)
    exact = low_rank.low_rank(inputs.double(), stacked(pairs, p.down.double(), p.up.double()))
    assert_both("y", call("low_rank", inputs, p), reference, exact, dtype)


def test_tanh_of_small_numbers():
    """As many digits as of large ones."""
    p = stacked([(0, 16, "tanh")], torch.eye(16, device=DEVICE), torch.eye(16, device=DEVICE))
    for scale in (1e-6, 1e-3, 0.19, 0.21, 1.0, 30.0):
        inputs = random(1, 40, 16, scale=scale)
        got = call("low_rank", inputs, p)
        error = ((got.double() - inputs.double().tanh()) / inputs.double().tanh()).abs().max().item()
        assert error < 1e-6, scale


def test_many_ranks_have_larger_blocks():
    p = make_pairs([(0, 500, "tanh"), (0, 20, None)], 40, 30, torch.bfloat16)
    inputs = random(1, 3, 40, dtype=torch.bfloat16)
    assert p.starts[-1] >= modules["low_rank"].MANY_RANKS
    assert_close("y", call("low_rank", inputs, p), low_rank.low_rank(inputs, p), torch.bfloat16, 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_does_not_depend_on_company(dtype):
    inputs, p = random(6, 130, WIDTH, dtype=dtype), make_pairs(V7, WIDTH, 72, dtype)
    expected = call("low_rank", inputs, p)
    for tokens in (slice(0, 1), slice(70, 71), slice(63, 66)):
        assert torch.equal(call("low_rank", inputs[:, tokens].contiguous(), p), expected[:, tokens])


# The gate of DeepEmbed.


def make_deep_embed(rank: int, out_width: int, dtype: torch.dtype) -> rwkv7.DeepEmbed:
    table = random(11, rank * rank, dtype=dtype, scale=rank**-0.5)
    return rwkv7.DeepEmbed(
        table, make_pairs([(0, rank, None)], WIDTH, out_width, dtype), random(out_width, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens, rank, out_width", [(1, 16, 130), (19, 12, 300), (3, 40, 16)])
def test_deep_embed(num_tokens, rank, out_width, dtype):
    normed, token_ids = random(num_tokens, WIDTH, dtype=dtype), torch.randint(11, (num_tokens,), device=DEVICE)
    token_ids[-1] = 10  # the last of the table
    p = make_deep_embed(rank, out_width, dtype)
    factors = p.factors
    exact = rwkv7.DeepEmbed(
        p.table.double(), stacked([(0, rank, None)], factors.down.double(), factors.up.double()), p.s0.double()
    )
    assert_both(
        "gate",
        call("deep_embed", normed, token_ids, p),
        rwkv7.deep_embed(normed, token_ids, p),
        rwkv7.deep_embed(normed.double(), token_ids, exact),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_embed_does_not_depend_on_company(dtype):
    """Nor on how the columns are shared out."""
    normed, token_ids = random(40, WIDTH, dtype=dtype), torch.randint(11, (40,), device=DEVICE)
    p = make_deep_embed(16, 300, dtype)
    expected = call("deep_embed", normed, token_ids, p)
    for tokens in (slice(0, 1), slice(20, 21), slice(15, 33)):
        assert torch.equal(call("deep_embed", normed[tokens], token_ids[tokens], p), expected[tokens])
    with patch.object(modules["deep_embed"], "PROGRAMS", 3):
        assert torch.equal(call("deep_embed", normed, token_ids, p), expected)


# What all of them share.


@contextmanager
def last_program_first() -> Iterator[None]:
    """The interpreter goes through a grid backwards."""
    builder = interpreter.interpreter_builder
    forwards = builder.set_grid_idx

    def backwards(*index: int) -> None:
        forwards(*(size - 1 - i for size, i in zip(builder.grid_dim, index, strict=True)))

    with patch.object(builder, "set_grid_idx", backwards):
        yield


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU has an order of its own")
@pytest.mark.parametrize("name", OPS)
def test_the_order_of_programs_does_not_matter(name):
    rows = ragged()
    case, p = Shift(rows.num_tokens, torch.float32), make_pairs(V7, WIDTH, 72, torch.float32)
    inputs, weight, out = random(6, 70, WIDTH), random(72, WIDTH), random(70, 72)
    token_ids, embed = torch.randint(11, (70,), device=DEVICE), make_deep_embed(12, 300, torch.float32)

    def run() -> tuple[Tensor, Tensor]:
        pool, total = case.pool.clone(), out.clone()
        if name == "shift_lerp":
            return call(name, *case.arguments(pool), rows)[2], pool
        if name == "linear":
            return call(name, inputs[0], weight, out=total), total
        return call(name, inputs, p) if name == "low_rank" else call(name, inputs[0], token_ids, embed), total

    expected = run()
    with last_program_first():
        got = run()
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


TIME_MIX = ["shift_lerp", "linear", "down", "up", "wkv7", "linear"]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts what the interpreter is asked to run")
@pytest.mark.parametrize(
    "version, channel_mix",
    [("7.0", ["shift_lerp", "linear", "linear"]), ("7.0de", ["shift_lerp", "deep_embed", "linear", "linear"])],
)
def test_launches_of_a_layer(version, channel_mix, checkpoint_file):
    sizes = dict(n_layer=2, n_embd=32, n_att=32, n_ffn=64, head_size=16, vocab=97)
    file, placement = (
        ModelFile.open(open_checkpoint(checkpoint_file(version, **sizes))),
        place(device="cpu", dtype="float32"),
    )
    resolved = resolve(file.ops, "triton", DEVICE, torch.float32, file.sizes)
    model = Model(file, placement, resolved)
    state = {field.name: torch.zeros(3, *field.shape, dtype=field.dtype) for field in file.state_fields(placement)}
    launched: list[str] = []

    def launch(executor: Any, *_: Any, **__: Any) -> None:
        launched.append(executor.fn.__name__.removesuffix("_kernel"))

    with patch.object(interpreter.GridExecutor, "__call__", launch):
        model.forward(torch.tensor([5, 6]), Rows((0, 2), (1, 1), DEVICE), [LayerState(**state)] * 2)
    assert launched == 2 * (TIME_MIX + channel_mix)


def test_nothing_to_do():
    weight = random(3, 72, WIDTH)
    assert call("linear", random(0, WIDTH), weight[0], dtype=torch.bfloat16).shape == (0, 72)
    assert call("linear", random(3, 0, WIDTH), weight, fixed_tiles=True).shape == (3, 0, 72)
    out = random(0, 72)
    assert call("linear", random(0, WIDTH), weight[0], out=out) is out
    assert call("low_rank", random(6, 0, WIDTH), make_pairs(V7, WIDTH, 72, torch.float32)).shape == (4, 0, 72)
    token_ids = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert call("deep_embed", random(0, WIDTH), token_ids, make_deep_embed(16, 40, torch.float32)).shape == (0, 40)


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


def test_low_rank_refuses():
    p, inputs = make_pairs(V7, WIDTH, 72, torch.float32), random(6, 4, WIDTH)
    for wrong, factors, name in (
        (inputs[0], p, "inputs, p"),
        (inputs, p._replace(down=None, up=None), "inputs, p"),
        (inputs[:5], p, "inputs"),
        (inputs.transpose(0, 1), p, "inputs"),
        (inputs.half(), p, "down"),
        (inputs[..., 1:].contiguous(), p, "down"),
        (inputs, p._replace(up=p.up[1:]), "up"),
        (inputs, p._replace(up=p.up.t().contiguous().t()), "up"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            ops["low_rank"](wrong, factors)


def test_deep_embed_refuses():
    p = make_deep_embed(16, 40, torch.float32)
    normed, token_ids = random(4, WIDTH), zeros(4, dtype=torch.int64, device=DEVICE)
    for arguments, name in (
        ((normed[:, ::2], token_ids, p), "normed"),
        ((normed, token_ids.int(), p), "token_ids"),
        ((normed[:3], token_ids, p), "token_ids"),
        ((normed, token_ids, p._replace(table=p.table[:, 1:])), "table"),
        ((normed, token_ids, p._replace(s0=p.s0.half())), "s0"),
        ((normed, token_ids, p._replace(factors=p.factors._replace(down=p.factors.down[1:]))), "down"),
        ((normed, token_ids, p._replace(factors=p.factors._replace(up=None))), "factors"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got"):
            ops["deep_embed"](*arguments)


@pytest.mark.parametrize("name", OPS)
def test_what_is_not_served(name):
    reason = modules[name].unsupported_reason
    assert reason(DEVICE, torch.bfloat16, {"C": WIDTH}) is None
    assert "float64" in reason(DEVICE, torch.float64, {})
    assert "meta" in reason(torch.device("meta"), torch.bfloat16, {})
    assert all(spec.label for spec in modules[name].specializations())
