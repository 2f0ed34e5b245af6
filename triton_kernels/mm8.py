"""A product with a weight in 8-bit form; see `mm8` in models/matrices/mm8_linear.py for definition and algebra."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check
from ..kernel_support.unsupported import DTYPES
from .launch import is_interpreted, power_of_two, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES, Tile, launch_product, multiply, product_constants

__all__ = ["CHOICES", "choose_tile", "mm8", "mm8_kernel", "prepare_kernel", "specializations", "unsupported_reason"]

ANY = 1 << 62
PREPARE_BLOCK = 2048


class Choice(NamedTuple):
    """Up to these sizes: the tile."""

    tokens: int
    rows: int
    """Rows of the weight: N."""
    tile: Tile


_HALF = (
    # Few tokens: the weight is streamed once, by at least as many programs as half the GPU can hold.
    Choice(16, 4096, Tile(16, 32, 256, 4, 4)),
    Choice(16, ANY, Tile(16, 64, 128, 4, 4)),
    Choice(64, ANY, Tile(64, 64, 128, 4, 3)),
    Choice(ANY, ANY, Tile(128, 128, 64, 8, 3)),
)
CHOICES = {
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
    torch.float32: (Choice(16, ANY, Tile(16, 32, 64, 4, 3)), Choice(ANY, ANY, Tile(32, 64, 32, 2, 3))),
}
"""The first that is large enough is taken. Predicted, not yet measured on a GPU.

A float32 tile of 64 rows has two warps: for four, Triton 3.6 and 3.7 multiply in TF32 on compute capability 10."""


def choose_tile(num_tokens: int, num_rows: int, dtype: torch.dtype) -> Tile:
    """The tile for a product."""
    return next(c.tile for c in CHOICES[dtype] if num_tokens <= c.tokens and num_rows <= c.rows)


@triton.jit
def prepare_kernel(  # type: ignore[no-untyped-def]
    p_x, p_my, p_ry, p_inputs, p_sums, K: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid [M]: one row's inputs of the product, [K], and its five float32 numbers: u, S2, S0, S1 and the unit."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.float32)
    sum_x = tl.zeros((BLOCK,), tl.float32)
    sum_my = tl.zeros((BLOCK,), tl.float32)
    sum_z = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        mask = k < K - start
        x = tl.load(p_x + row * K + start + k, mask=mask, other=0.0).to(tl.float32)
        z = x * tl.load(p_ry + start + k, mask=mask, other=0.0)
        peaks = tl.maximum(peaks, tl.abs(z))
        sum_x += x
        sum_my += x * tl.load(p_my + start + k, mask=mask, other=0.0)
        sum_z += z
    # The unit is the smallest power of two above the peak: the exponent of the float32 plus one; 1 where the peak is 0.
    peak = tl.max(peaks, 0) * (K / 128)
    exponent = tl.minimum(peak.to(tl.int32, bitcast=True) >> 23, 252) + 1
    unit = tl.where(peak == 0.0, 1.0, (exponent << 23).to(tl.float32, bitcast=True))
    shrink = tl.where(peak == 0.0, 1.0, ((254 - exponent) << 23).to(tl.float32, bitcast=True))  # 1 / unit
    s2 = tl.sum(sum_z, 0) * shrink
    mean = s2 / K
    rest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        mask = k < K - start
        x = tl.load(p_x + row * K + start + k, mask=mask, other=0.0).to(tl.float32)
        z = x * tl.load(p_ry + start + k, mask=mask, other=0.0) * shrink
        rounded = (z - mean).to(p_inputs.dtype.element_ty)
        tl.store(p_inputs + row * K + start + k, rounded, mask=mask)
        rest += tl.where(mask, z - rounded.to(tl.float32), 0.0)
    tl.store(p_sums + row * 5, tl.sum(rest, 0) / K)
    tl.store(p_sums + row * 5 + 1, s2)
    tl.store(p_sums + row * 5 + 2, tl.sum(sum_x, 0) * shrink)
    tl.store(p_sums + row * 5 + 3, tl.sum(sum_my, 0) * shrink)
    tl.store(p_sums + row * 5 + 4, unit)


@triton.jit(do_not_specialize=["num_tokens"])
def mm8_kernel(  # type: ignore[no-untyped-def]
    p_inputs,
    p_centred,
    p_rx,
    p_corrections,
    p_sums,
    p_y,
    num_tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [tiles]. The weight is the first operand: a tensor core reads the first operand from registers, where the
    int8 numbers are converted.
    """
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_tile = tl.program_id(0)
    i_m, i_n = tl.swizzle2d(i_tile // tiles_n, i_tile % tiles_n, tiles_m, tiles_n, GROUP)
    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = m < num_tokens, n < N
    token = m[None, :].to(tl.int64)
    p_xs = p_inputs + token * K + k[:, None]
    p_weights = p_centred + n[:, None].to(tl.int64) * K + k[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K:
            mask_k = k < K - start
            x = tl.load(p_xs, mask=mask_m[None, :] & mask_k[:, None], other=0.0)
            weight = tl.load(p_weights, mask=mask_n[:, None] & mask_k[None, :], other=0)
        else:
            x = tl.load(p_xs, mask=mask_m[None, :], other=0.0)
            weight = tl.load(p_weights, mask=mask_n[:, None], other=0)
        if not UPCAST:
            weight = weight.to(x.dtype)
        total = multiply(weight, x, total, UPCAST)
        p_xs += BLOCK_K
        p_weights += BLOCK_K
    y = total * tl.load(p_rx + n, mask=mask_n)[:, None]
    for i in tl.static_range(4):
        correction = tl.load(p_corrections + i * N + n, mask=mask_n)
        y += correction[:, None] * tl.load(p_sums + m * 5 + i, mask=mask_m)[None, :]
    y *= tl.load(p_sums + m * 5 + 4, mask=mask_m)[None, :]
    tl.store(p_y + token * N + n[:, None], y, mask=mask_n[:, None] & mask_m[None, :])


def mm8(x: Tensor, centred: Tensor, rx: Tensor, my: Tensor, ry: Tensor, corrections: Tensor) -> Tensor:
    """x W^T for a weight in 8-bit form, in two launches: the rows' inputs and sums, then the product.

    Args:
        x: [M, K], float32, bfloat16 or float16, contiguous.
        centred: [N, K], int8, contiguous: q - 128, transposed.
        rx: [N], my, ry: [K], corrections: [4, N], float32, contiguous.

    Returns:
        [M, N], dtype of `x`.

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: the dtype of `x` rounds the centred inputs and the result, all else is float32.
    Graph-safe: no allocation besides the result, the inputs [M, K] and five numbers a row; no host sync.
    """
    if x.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(f"x: got {x.dtype} {list(x.shape)}, expected [M, K] in one of {', '.join(map(str, DTYPES))}")
    if centred.dim() != 2:
        raise ValueError(f"centred: got {list(centred.shape)}, expected [N, K]")
    (num_tokens, depth), num_rows = x.shape, len(centred)
    check("x", x, x.shape, x.dtype, centred.device)
    check("centred", centred, (num_rows, depth), torch.int8, x.device)
    check("rx", rx, (num_rows,), torch.float32, x.device)
    check("my", my, (depth,), torch.float32, x.device)
    check("ry", ry, (depth,), torch.float32, x.device)
    check("corrections", corrections, (4, num_rows), torch.float32, x.device)
    y = torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    if not (num_tokens and num_rows):
        return y
    inputs = torch.empty_like(x)
    sums = torch.empty(num_tokens, 5, dtype=torch.float32, device=x.device)
    block = min(power_of_two(depth), PREPARE_BLOCK)
    constants = {"K": depth, "BLOCK": block, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    start_kernel(prepare_kernel, (num_tokens,), (x, my, ry, inputs, sums), constants)
    tile = choose_tile(num_tokens, num_rows, x.dtype)
    arguments, sizes = (inputs, centred, rx, corrections, sums, y), (num_tokens, num_rows, depth)
    launch_product(mm8_kernel, arguments, sizes, tile, UPCAST=is_interpreted())
    return y


unsupported_reason = probed("mm8")


def specializations() -> list[Specialization]:
    """The compilations for models of widths 768 and 4096: every tile."""

    def product(tokens: int, rows: int, depth: int, dtype: torch.dtype, is_probe: bool = False) -> Specialization:
        tile, name = choose_tile(tokens, rows, dtype), TYPES[dtype]
        return Specialization(
            f"[{rows}, {depth}] {name} M <= {tokens}",
            mm8_kernel,
            {
                **pointers(name, "inputs", "y"),
                **pointers("i8", "centred"),
                **pointers("fp32", "rx", "corrections", "sums"),
                "num_tokens": "i32",
            },
            product_constants(rows, depth, tile) | {"UPCAST": False},
            tile.num_warps,
            tile.num_stages,
            is_probe,
        )

    def prepare(depth: int, name: str, is_probe: bool = False) -> Specialization:
        return Specialization(
            f"rows of {depth} {name}",
            prepare_kernel,
            {**pointers(name, "x", "inputs"), **pointers("fp32", "my", "ry", "sums")},
            {"K": depth, "BLOCK": min(power_of_two(depth), PREPARE_BLOCK)},
            4,
            1,
            is_probe,
        )

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        prepare(768, "bf16"),
        prepare(16384, "fp16", is_probe=True),
        prepare(3072, "fp32"),
        product(16, 768, 768, bf16),
        product(16, 65536, 768, bf16),
        product(64, 768, 3072, bf16),
        product(1 << 20, 16384, 4096, bf16, is_probe=True),
        product(16, 65536, 4096, fp16),
        product(1 << 20, 16384, 4096, fp16),
        product(16, 768, 3072, fp32),
        product(1 << 20, 3072, 768, fp32),
    ]
