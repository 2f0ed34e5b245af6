"""Arguments and comparisons for tests of Triton's ops around the recurrences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from kernels.shift_cases import WIDTH, garbage_in_new_tensors, random
from tolerances import assert_close
from torch import Tensor

from rwkv_batch.models import rwkv7
from rwkv_batch.models.matrices import product
from rwkv_batch.models.matrices.linear import DenseLinear
from rwkv_batch.models.matrices.low_rank import LowRank, LowRankPair

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = ("shift_lerp", "linear", "low_rank", "project", "deep_embed")

modules = {name: import_module(f"rwkv_batch.triton_kernels.{name}") for name in OPS}
ops: dict[str, Callable[..., Any]] = {name: getattr(module, name) for name, module in modules.items()}


def call(name: str, *args: Any, **kwargs: Any) -> Any:
    with garbage_in_new_tensors():
        return ops[name](*args, **kwargs)


def assert_both(name: str, got: Tensor, reference: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Asserts that a result is close to the float64 result, and to the definition's, which rounds after each step."""
    assert got.dtype == reference.dtype
    assert_close(f"{name} against float64", got, exact, dtype)
    assert_close(f"{name} against the reference", got, reference, dtype, 4.0)


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


def make_deep_embed(rank: int, out_width: int, dtype: torch.dtype) -> rwkv7.DeepEmbed:
    table = random(11, rank * rank, dtype=dtype, scale=rank**-0.5)
    return rwkv7.DeepEmbed(
        table, make_pairs([(0, rank, None)], WIDTH, out_width, dtype), random(out_width, dtype=dtype)
    )
