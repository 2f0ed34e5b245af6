"""Helpers of kernels with matrix products: tiles and launches, activations, and the product of two tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ceil_div, start_kernel

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Triton's names of the dtypes."""
GROUP = 8
"""Tiles of tokens that read the same rows of a weight one after the other, so that the L2 cache serves all but one."""


class Tile(NamedTuple):
    """The part of a product that one program computes, and how the program is launched."""

    tokens: int
    rows: int
    """Rows of the weight: output features."""
    depth: int
    """Input features in flight at a time."""
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Launch options of a kernel with this tile."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def product_constants(num_rows: int, depth: int, tile: Tile) -> dict[str, int]:
    """The constants that every kernel of a product x W^T has, for a weight [num_rows, depth]."""
    blocks = {"BLOCK_M": tile.tokens, "BLOCK_N": tile.rows, "BLOCK_K": tile.depth}
    return {"N": num_rows, "K": depth, **blocks, "GROUP": GROUP}


@cache
def _constants_and_options(num_rows: int, depth: int, tile: Tile) -> dict[str, Any]:
    """The constants and launch options of a product. Cached, because a launch takes only a few microseconds."""
    return product_constants(num_rows, depth, tile) | tile.options


def launch_product(
    kernel: Any, arguments: Sequence[Tensor | None], sizes: tuple[int, int, int], tile: Tile, *batch: int, **more: Any
) -> None:
    """Launches the kernel of a product x W^T, one program a tile.

    Args:
        arguments: all but the number of tokens, which follows them.
        sizes: tokens, rows of the weight, depth.
        batch: number of products, for a kernel that computes several.
        more: further constants.
    """
    num_tokens, num_rows, depth = sizes
    grid = (ceil_div(num_tokens, tile.tokens) * ceil_div(num_rows, tile.rows), *batch)
    start_kernel(kernel, grid, (*arguments, num_tokens), _constants_and_options(num_rows, depth, tile) | more)


@triton.jit
def product_of_rows(  # type: ignore[no-untyped-def]
    p_xs,
    p_weights,
    mask_m,
    mask_n,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """W x^T of one tile, [BLOCK_N, BLOCK_M] float32.

    The weight is the first operand, so that its rows, and not the few tokens, fill the 64 rows of a tensor core's
    product.

    Args:
        p_xs, p_weights: pointers to the first BLOCK_K features, [BLOCK_K, BLOCK_M] and [BLOCK_N, BLOCK_K].
        mask_m, mask_n: [1, BLOCK_M] and [BLOCK_N, 1]; tokens and rows of the weight that there are.
    """
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K:
            mask_k = k < K - start
            x = tl.load(p_xs, mask=mask_m & mask_k[:, None], other=0.0)
            weight = tl.load(p_weights, mask=mask_n & mask_k[None, :], other=0.0)
        else:
            x = tl.load(p_xs, mask=mask_m, other=0.0)
            weight = tl.load(p_weights, mask=mask_n, other=0.0)
        total = multiply(weight, x, total, UPCAST)
        p_xs += BLOCK_K
        p_weights += BLOCK_K
    return total


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `ACTIVATIONS` in models/matrices/product.py; `x` is float32."""
    if ACTIVATION == "squared_relu":
        x = tl.where(x < 0.0, 0.0, x)
        x = x * x
    elif ACTIVATION == "sigmoid":
        x = tl.sigmoid(x)
    elif ACTIVATION == "tanh":
        # Near 0, where the quotient cancels, the first terms of the series.
        square = x * x
        series = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
        decayed = tl.exp(-2.0 * tl.abs(x))
        magnitude = (1.0 - decayed) / (1.0 + decayed)
        x = tl.where(square < 0.04, series, tl.where(x < 0.0, -magnitude, magnitude))
    return x


@triton.jit
def multiply(a, b, total, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + a b, in float32.

    The interpreter needs UPCAST: it would multiply the bit patterns of bfloat16, and leave the order of each sum to a
    library that chooses it by the place in the tile.
    """
    if UPCAST:
        product = total + tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], 1)
    else:
        product = tl.dot(a, b, total, input_precision="ieee")
    return product
