"""Rules that Triton's ops around the recurrences share: order of programs, launches of a layer, empty batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernels.shift_cases import DEVICE, WIDTH, Shift, ragged, random
from torch import Tensor

from rwkv_batch.models.architecture import LayerState
from rwkv_batch.models.files.checkpoint import open_checkpoint
from rwkv_batch.models.matrices.linear import StackedLinear
from rwkv_batch.models.matrices.product import linear
from rwkv_batch.models.matrices.projection import Projection
from rwkv_batch.models.model import Model, ModelFile
from rwkv_batch.models.placement import place
from rwkv_batch.models.rows import Rows
from rwkv_batch.ops import resolve

pytest.importorskip("triton")

from kernels.glue_cases import OPS, V7, call, make_deep_embed, make_pairs, modules
from triton.runtime import interpreter

pytestmark = pytest.mark.usefixtures("nearest_bfloat16", "device_is_served")


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
        if name == "project":
            (product,), pairs = call(name, inputs, Projection(StackedLinear(weight[None], linear, 0, 1), p, True), None)
            return product, pairs
        return call(name, inputs, p) if name == "low_rank" else call(name, inputs[0], token_ids, embed), total

    expected = run()
    with last_program_first():
        got = run()
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


TIME_MIX = ["shift_lerp", "project", "up", "wkv7", "linear"]


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


@pytest.mark.parametrize("name", OPS)
def test_what_is_not_served(name):
    reason = modules[name].unsupported_reason
    assert reason(DEVICE, torch.bfloat16, {"C": WIDTH}) is None
    assert "float64" in reason(DEVICE, torch.float64, {})
    assert "meta" in reason(torch.device("meta"), torch.bfloat16, {})
    assert all(spec.label for spec in modules[name].specializations())
