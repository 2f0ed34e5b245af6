"""Triton's `low_rank` and `deep_embed` against their definitions; interpreted where there is no GPU."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import pytest
import torch
from kernels.shift_cases import DEVICE, WIDTH, random
from tolerances import assert_close

from rwkv_batch.models import rwkv7
from rwkv_batch.models.matrices import low_rank

pytest.importorskip("triton")

from kernels.glue_cases import (
    DTYPES,
    ODD,
    V6,
    V7,
    assert_both,
    call,
    make_deep_embed,
    make_pairs,
    modules,
    ops,
    stacked,
)

pytestmark = pytest.mark.usefixtures("nearest_bfloat16", "device_is_served")

zeros = partial(torch.zeros, device=DEVICE)


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
    """Small numbers have as many correct digits as large ones."""
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
