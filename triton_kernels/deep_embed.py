"""The gate of DeepEmbed in one launch; see `deep_embed` in models/rwkv7.py for the definition."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check
from .launch import ceil_div, is_interpreted, power_of_two, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES, multiply

__all__ = ["deep_embed", "deep_embed_kernel", "specializations", "unsupported_reason"]

TOKENS, RANKS, COLUMNS = 16, 16, 128
"""Tokens of a program, ranks of the first product at a time, and columns of the gate at a time."""
DEPTH = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 32}
"""Channels of the first product at a time."""
NUM_WARPS, NUM_STAGES = 8, 3
PROGRAMS = 256
"""The columns are divided among programs until there are so many; each program computes the low-rank part again."""


@triton.jit(do_not_specialize=["num_tokens", "columns"])
def deep_embed_kernel(  # type: ignore[no-untyped-def]
    p_normed,
    p_token_id,
    p_table,
    p_down,
    p_up,
    p_s0,
    p_gate,
    num_tokens,
    columns,
    C: tl.constexpr,
    F: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    R_CEIL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [M / BLOCK_M, F / columns]."""
    dtype = p_gate.dtype.element_ty
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = m < num_tokens
    token = m.to(tl.int64)[:, None]
    c = tl.arange(0, BLOCK_C)
    rank = tl.arange(0, R_CEIL)
    p_matrix = p_table + tl.load(p_token_id + m, mask=mask_m, other=0) * (R * R)
    mixed = tl.zeros((BLOCK_M, R_CEIL), tl.float32)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        low = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for done in range(0, C, BLOCK_C):
            mask_c = c < C - done
            z = tl.load(p_normed + token * C + done + c[None, :], mask=mask_m[:, None] & mask_c[None, :], other=0.0)
            down = tl.load(
                p_down + r[None, :] * C + done + c[:, None], mask=(r < R)[None, :] & mask_c[:, None], other=0.0
            )
            low = multiply(z, down, low, UPCAST)
        matrix = tl.load(
            p_matrix[:, None, None] + r[None, :, None] * R + rank[None, None, :],
            mask=mask_m[:, None, None] & (r < R)[None, :, None] & (rank < R)[None, None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_R, R_CEIL]
        mixed += tl.sum(low.to(dtype).to(tl.float32)[:, :, None] * matrix.to(tl.float32), 1)
    mixed = mixed.to(dtype)
    first_column = tl.program_id(1) * tl.multiple_of(columns, BLOCK_F)
    for start in range(0, tl.minimum(columns, F - first_column), BLOCK_F):
        f = first_column + start + tl.arange(0, BLOCK_F)
        mask_f = (f < F)[None, :]
        up = tl.load(p_up + rank[:, None] * F + f[None, :], mask=(rank < R)[:, None] & mask_f, other=0.0)
        gate = multiply(mixed, up, tl.zeros((BLOCK_M, BLOCK_F), tl.float32), UPCAST)
        gate += tl.load(p_s0 + f, mask=f < F, other=0.0).to(tl.float32)[None, :]
        tl.store(p_gate + token * F + f[None, :], gate, mask=mask_m[:, None] & mask_f)


def deep_embed(normed: Tensor, token_ids: Tensor, p: Any) -> Tensor:
    """The gate of DeepEmbed: ((z s1) E[token]) s2 + s0, with the token's own square matrix E[token] of `p.table`.

    Args:
        normed: z, [M, C]: what goes into the channel mix, before the token shift; float32, bfloat16 or float16,
            contiguous.
        token_ids: [M] int64.
        p: a `DeepEmbed`: `table` [V, R * R], the stacked factors `down` [R, C] and `up` [R, F] of its one pair, without
            a nonlinearity, and `s0` [F]; dtype of `normed`, contiguous.

    Returns:
        [M, F], dtype of `normed`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: sums in float32; z s1 and its product with the token's matrix are rounded to the dtype of `normed`. A
        row's bits do not depend on M or on the other rows.
    Graph-safe: no allocation besides the output, no host sync.
    """
    down, up = _check(normed, token_ids, p)
    (num_tokens, width), (rank, out_width) = normed.shape, up.shape
    gate = torch.empty(num_tokens, out_width, dtype=normed.dtype, device=normed.device)
    if not num_tokens:
        return gate
    blocks_of_tokens, blocks_of_columns = ceil_div(num_tokens, TOKENS), ceil_div(out_width, COLUMNS)
    columns = COLUMNS * ceil_div(blocks_of_columns, max(PROGRAMS // blocks_of_tokens, 1))
    arguments = normed, token_ids, p.table, down, up, p.s0, gate, num_tokens, columns
    constants = _constants(width, out_width, rank, normed.dtype) | {"UPCAST": is_interpreted()}
    options = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "enable_fp_fusion": True}
    start_kernel(deep_embed_kernel, (blocks_of_tokens, ceil_div(out_width, columns)), arguments, constants | options)
    return gate


def _check(normed: Tensor, token_ids: Tensor, p: Any) -> tuple[Tensor, Tensor]:
    """The factors `down` and `up`.

    Raises:
        ValueError: a tensor is not as `deep_embed` says.
    """
    (num_tokens, width), dtype, device = normed.shape, normed.dtype, normed.device
    down, up = p.factors.down, p.factors.up
    if down is None or up is None:
        raise ValueError("factors: got no stacked factors, expected down [R, C] and up [R, F]")
    rank, out_width = up.shape
    check("normed", normed, normed.shape, dtype, down.device)
    check("token_ids", token_ids, (num_tokens,), torch.int64, device)
    check("table", p.table, (len(p.table), rank * rank), dtype, device)
    check("down", down, (rank, width), dtype, device)
    check("up", up, (rank, out_width), dtype, device)
    check("s0", p.s0, (out_width,), dtype, device)
    return down, up


def _constants(width: int, out_width: int, rank: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of the kernel, but for UPCAST. A tensor core's product takes at least 16 ranks."""
    return {
        "C": width,
        "F": out_width,
        "R": rank,
        "BLOCK_M": TOKENS,
        "BLOCK_R": RANKS,
        "BLOCK_C": DEPTH[dtype],
        "BLOCK_F": COLUMNS,
        "R_CEIL": max(power_of_two(rank), 16),
    }


unsupported_reason = probed("deep_embed")


def specializations() -> list[Specialization]:
    """The compilations for models with matrices of 32 x 32 and of 64 x 64."""

    def one(dtype: torch.dtype, width: int, out_width: int, rank: int, is_probe: bool = False) -> Specialization:
        name = TYPES[dtype]
        signature = {
            **pointers(name, "normed", "table", "down", "up", "s0", "gate"),
            **pointers("i64", "token_id"),
            "num_tokens": "i32",
            "columns": "i32",
        }
        constexprs = _constants(width, out_width, rank, dtype) | {"UPCAST": False}
        label = f"C = {width}, F = {out_width}, R = {rank}, {name}"
        return Specialization(label, deep_embed_kernel, signature, constexprs, NUM_WARPS, NUM_STAGES, is_probe)

    return [
        one(torch.bfloat16, 768, 3072, 32),
        one(torch.bfloat16, 4096, 16384, 64, is_probe=True),
        one(torch.float16, 768, 3072, 32),
        one(torch.float32, 768, 3072, 32),
    ]
