"""Native kernels whose tiles are parts of rows or several rows: the results are those of one thread, token by token."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from kernels.shift_cases import Shift, garbage_in_new_tensors, live_tokens
from tolerances import assert_close

from rwkv_batch.cpu_kernels.build import unavailable
from rwkv_batch.cpu_kernels.ddlerp import ddlerp
from rwkv_batch.cpu_kernels.layer_norm import layer_norm
from rwkv_batch.cpu_kernels.shift_lerp import shift_lerp
from rwkv_batch.cpu_kernels.take_rows import take_rows
from rwkv_batch.models import blocks, rwkv6
from rwkv_batch.models.rows import RecordedRows, Rows

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = (1000, 6000, 20000)
"""Tiles of `shift_lerp` have 16, 2 and 1 tokens of these widths."""

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.usefixtures("same_number_of_threads_afterwards"),
]


def random_rows(draw: random.Random) -> Rows:
    """Up to seven rows, of which some are padding, of one token, or longer than a tile."""
    slots = draw.sample(range(7), draw.randint(1, 7))
    lengths = [draw.choice((1, 1, 2, 5, 17, 40)) for _ in slots]
    return Rows([slot if draw.random() < 0.7 else -1 for slot in slots], lengths, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_of_shift_lerp_begin_anywhere_in_rows(dtype: torch.dtype) -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    for width in WIDTHS * 3:
        rows = random_rows(draw)
        case, live = Shift(rows.num_tokens, dtype, width, 2, CPU), live_tokens(rows)
        found = []
        for threads in (1, draw.randint(2, 4)):
            torch.set_num_threads(threads)
            pool = case.pool.clone()
            with garbage_in_new_tensors():
                parts = shift_lerp(*case.arguments(pool), rows, keep_parts=True)
            found.append([part[..., live, :] for part in parts if part is not None] + [pool])
        for one, several in zip(*found, strict=True):
            assert torch.equal(one, several)
        pool = case.pool.clone()
        expected = blocks.shift_lerp(*case.arguments(pool), rows, True)
        for name, part, right in zip(("normed", "delta", "mixed"), found[0], expected, strict=False):
            assert_close(name, part, right[..., live, :], dtype, 2.0)
        assert_close("shift", found[0][-1], pool, dtype)
        untouched = [slot for slot in range(7) if slot not in rows.slots]
        assert torch.equal(found[0][-1][untouched], case.pool[untouched])


def test_shift_lerp_with_padding_of_no_tokens() -> None:
    """As in a recorded step: rows that are padding have no tokens, but the last, which has all that are too many."""
    lengths = torch.tensor([0, 30, 0, 0, 2, 0, 9])
    slots = torch.tensor([-1, 4, -1, -1, 0, -1, -1], dtype=torch.int32)
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    token_rows = torch.arange(7).repeat_interleave(lengths).int()
    zeros = torch.zeros(7, dtype=torch.int32)
    rows = RecordedRows(slots, zeros, zeros - 1, ends, token_rows)
    case = Shift(41, torch.float32, 1000, 2, CPU)
    pools = case.pool.clone(), case.pool.clone()
    torch.set_num_threads(3)
    got = shift_lerp(*case.arguments(pools[0]), rows)[2]
    expected = blocks.shift_lerp(*case.arguments(pools[1]), Rows((4, 0, -1), (30, 2, 9), CPU))[2]
    assert_close("mixed", got[:, :32], expected[:, :32], torch.float32, 2.0)
    assert_close("pool", *pools, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for num_rows, width in ((0, 8), (1, 1), (3, 33), (100, 1000)):
        x = (torch.randn(width, num_rows) * 3 + 1).to(dtype).T  # not contiguous
        norm = blocks.Norm(*torch.randn(2, width).to(dtype))
        torch.set_num_threads(1)
        alone = layer_norm(x, norm)
        torch.set_num_threads(3)
        assert torch.equal(layer_norm(x, norm), alone)
        exact = blocks.layer_norm(x.double(), blocks.Norm(*(part.double() for part in norm)))
        if num_rows:
            assert_close("normed", alone, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ddlerp(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for count, num_rows, width in ((5, 0, 8), (1, 1, 1), (5, 3, 33), (5, 40, 1000), (2, 3, 40000)):
        shapes = (num_rows, width), (num_rows, width), (count, num_rows, width), (count, 1, width)
        given = [torch.randn(shape).to(dtype) for shape in shapes]
        exact = rwkv6.ddlerp(*(part.double() for part in given))
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ddlerp(*(part.clone() for part in given)))
        assert torch.equal(*found)
        if num_rows:
            assert_close(f"{num_rows} x {width}", found[0], exact, dtype)


@pytest.mark.parametrize("which", range(4))
def test_ddlerp_refuses(which: int) -> None:
    given = [torch.zeros(3, 8), torch.zeros(3, 8), torch.zeros(5, 3, 8), torch.zeros(5, 1, 8)]
    given[which] = given[which].bfloat16() if which != 2 else torch.zeros(5, 8, 3).mT
    with pytest.raises(ValueError, match=f"^{('normed', 'delta', 'shares', 'mix')[which]}: got"):
        ddlerp(*given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_take_rows(dtype: torch.dtype) -> None:
    table = torch.randn(50, 1000).to(dtype)
    index = torch.randint(50, (200,))
    torch.set_num_threads(3)
    assert torch.equal(take_rows(table, index), table[index])
    assert take_rows(table, index[:0]).shape == (0, 1000)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"index": torch.tensor([0, 5])}, IndexError, "index: got 5 at 1"),
        ({"index": torch.tensor([-1])}, IndexError, "index: got -1 at 0"),
        ({"index": torch.tensor([0], dtype=torch.int32)}, ValueError, "index: got"),
        ({"table": torch.zeros(8, 5).T}, ValueError, "table: got"),
    ],
)
def test_take_rows_refuses(change: dict[str, Any], error: type[Exception], name: str) -> None:
    given = {"table": torch.zeros(5, 8), "index": torch.tensor([0])} | change
    with pytest.raises(error, match=f"^{name}"):
        take_rows(**given)
