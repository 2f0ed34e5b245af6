"""The native gate of DeepEmbed against its definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.cpu_kernels import linear
from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.deep_embed import deep_embed
from rwkv_batch.models import rwkv7
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.low_rank import LowRank, LowRankPair
from rwkv_batch.ops import Implementation

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTH, VOCAB, OUT_WIDTH = 48, 11, 300

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.usefixtures("same_number_of_threads_afterwards"),
]


def make(rank: int, dtype: torch.dtype) -> tuple[rwkv7.DeepEmbed, rwkv7.DeepEmbed]:
    """The weights as the kernel takes them, and in float64 as the definition does."""
    torch.manual_seed(0)
    down, up = torch.randn(rank, WIDTH) / WIDTH**0.5, torch.randn(OUT_WIDTH, rank) / rank**0.5
    table, s0 = (torch.randn(VOCAB, rank * rank) / rank**0.5).to(dtype), torch.randn(OUT_WIDTH).to(dtype)

    def pairs(factors: list[DenseLinear]) -> LowRank:
        return LowRank((LowRankPair(0, None, *factors),), None, None)

    factors = [factor.to(dtype) for factor in (down, up)]
    packed = [DenseLinear(linear.pack(factor), Implementation(linear.linear)) for factor in factors]
    exact = [DenseLinear(factor.double()) for factor in factors]
    return rwkv7.DeepEmbed(table, pairs(packed), s0), rwkv7.DeepEmbed(table.double(), pairs(exact), s0.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 5, 32, 64, 100, 192])
def test_the_gate(rank: int, dtype: torch.dtype) -> None:
    p, exact = make(rank, dtype)
    for num_rows in (0, 1, 7, 40):
        normed, token_ids = torch.randn(num_rows, WIDTH).to(dtype), torch.randint(VOCAB, (num_rows,))
        found: list[Tensor] = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(deep_embed(normed, token_ids, p))
        assert torch.equal(*found)
        assert found[0].dtype == dtype and found[0].shape == (num_rows, OUT_WIDTH)
        if num_rows:
            assert_close("gate", found[0], rwkv7.deep_embed(normed.double(), token_ids, exact), dtype, 2.0)
            alone = deep_embed(normed[-1:].contiguous(), token_ids[-1:], p)
            assert torch.equal(alone, found[0][-1:])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"token_ids": torch.tensor([0, 11])}, IndexError, "token_ids: got 11 at 1, expected 0 to 10"),
        ({"token_ids": torch.tensor([-1, 3])}, IndexError, "token_ids: got -1 at 0"),
        ({"token_ids": torch.tensor([1, 2], dtype=torch.int32)}, ValueError, "token_ids: got"),
        ({"token_ids": torch.tensor([1])}, ValueError, "token_ids: got"),
        ({"normed": torch.zeros(2, WIDTH + 1)}, ValueError, "x: got"),
        ({"table": torch.zeros(VOCAB, 24)}, ValueError, "table: got"),
        ({"s0": torch.zeros(OUT_WIDTH - 1)}, ValueError, "s0: got"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    p, _ = make(5, torch.float32)
    parts = {name: change.pop(name) for name in ("table", "s0") if name in change}
    given: dict[str, Any] = {"normed": torch.zeros(2, WIDTH), "token_ids": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=f"^{message}"):
        deep_embed(p=p._replace(**parts), **given)
