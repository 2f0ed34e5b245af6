"""A product with a matrix and its epilogue in one launch; see `linear` in models/matrices/product.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_all
from .launch import ceil_div, is_interpreted, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES, Tile, activate, launch_product, product_constants, product_of_rows

__all__ = [
    "CHOICES",
    "FIXED",
    "choose_tile",
    "finish_kernel",
    "fixed_tile",
    "linear",
    "linear_kernel",
    "rows_independent",
    "specializations",
    "unsupported_reason",
]

ANY = 1 << 62


class Choice(NamedTuple):
    """Up to these sizes: the tile of this module's kernel, or None for torch's product."""

    tokens: int
    rows: int
    """Rows of the weights of all products together: N, or n * N."""
    depth: int
    """K."""
    tile: Tile | None

    def takes(self, num_tokens: int, num_rows: int, depth: int) -> bool:
        return num_tokens <= self.tokens and num_rows <= self.rows and depth <= self.depth


_HALF = (
    # Few tokens: the weights are streamed once, by at least as many programs as half the GPU can hold.
    Choice(16, 2048, ANY, Tile(16, 16, 256, 4, 4)),
    Choice(16, 8192, ANY, Tile(16, 32, 128, 4, 4)),
    Choice(16, ANY, ANY, Tile(16, 64, 128, 4, 3)),
    Choice(64, 2048, 2048, Tile(64, 32, 128, 4, 3)),
    # Long sums for few rows: torch's product splits them among programs.
    Choice(64, 2048, ANY, None),
    Choice(64, ANY, ANY, Tile(64, 64, 64, 4, 4)),
    # Small products: their time is that of a launch.
    Choice(256, 4096, 1024, Tile(64, 64, 64, 4, 4)),
    Choice(ANY, ANY, ANY, None),
)
FUSED = (
    # Few rows: the library's tiles are more programs than these would be.
    Choice(ANY, 4095, ANY, None),
    Choice(256, 4096, 1024, Tile(64, 64, 64, 4, 4)),
    Choice(1024, ANY, ANY, Tile(128, 128, 64, 8, 3)),
)
"""Tiles where torch's product would be followed by a launch for the epilogue, which reads and writes the result once
more. Predicted for `key` of RWKV-7 1.5B on an H100. At M = 256 the library's measured times are 13.9 + 2.6 + 0.8 (gap)
µs; 128 programs of the last tile, at 65 % of the tensor cores' rate, take 16. At M = 1024 the product takes 48, the
epilogue 5 to 12, and 512 programs 57.
"""
CHOICES = {
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
    torch.float32: (Choice(16, ANY, ANY, Tile(16, 32, 64, 4, 3)), Choice(ANY, ANY, ANY, None)),
}
"""The first that is large enough is taken. Predicted, not yet measured on a GPU."""

_HALF_FIXED = (Choice(ANY, 4095, ANY, Tile(64, 64, 64, 4, 4)), Choice(ANY, ANY, ANY, Tile(64, 128, 64, 4, 3)))
FIXED = {
    torch.bfloat16: _HALF_FIXED,
    torch.float16: _HALF_FIXED,
    torch.float32: (Choice(ANY, ANY, ANY, Tile(64, 64, 32, 4, 3)),),
}
"""Tiles where a row's bits must not depend on the number of tokens: they depend on the weight only."""

FINISH_BLOCK, FINISH_WARPS = 1024, 4


def choose_tile(
    num_tokens: int, num_rows: int, depth: int, dtype: torch.dtype, has_library: bool, has_epilogue: bool = False
) -> Tile | None:
    """The tile of this module's kernel for a product, or None for torch's product.

    Args:
        has_library: torch's product can serve.
        has_epilogue: torch's product would be followed by a launch of `finish_kernel`.
    """
    found = next(choice.tile for choice in CHOICES[dtype] if choice.takes(num_tokens, num_rows, depth))
    if found is None and has_epilogue and dtype != torch.float32:
        found = next((choice.tile for choice in FUSED if choice.takes(num_tokens, num_rows, depth)), None)
    return found if found or has_library else fixed_tile(num_rows, dtype)


def fixed_tile(num_rows: int, dtype: torch.dtype) -> Tile:
    """The tile that a matrix has for any number of tokens."""
    return next(choice.tile for choice in FIXED[dtype] if choice.tile and num_rows <= choice.rows)


@triton.jit(do_not_specialize=["num_tokens"])
def linear_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_weight,
    p_gate,
    p_y,
    num_tokens,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid [tiles, n]."""
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_tile = tl.program_id(0)
    i_product = tl.program_id(1).to(tl.int64)
    i_m, i_n = tl.swizzle2d(i_tile // tiles_n, i_tile % tiles_n, tiles_m, tiles_n, GROUP)
    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mask_m = (m < num_tokens)[None, :]
    mask_n = (n < N)[:, None]
    token = (i_product * num_tokens + m)[None, :]  # int64
    p_xs = p_x + token * K + k[:, None]
    p_weights = p_weight + (i_product * N + n)[:, None] * K + k[None, :]
    total = product_of_rows(p_xs, p_weights, mask_m, mask_n, K, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST)
    y = activate(total, ACTIVATION)
    o_y = token * N + n[:, None]
    mask = mask_m & mask_n
    if p_gate is not None:
        y *= tl.load(p_gate + o_y, mask=mask).to(tl.float32)
    if ADD:
        y += tl.load(p_y + o_y, mask=mask).to(tl.float32)
    tl.store(p_y + o_y, y, mask=mask)


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    p_product, p_gate, p_y, count, ACTIVATION: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid [count / BLOCK]: the epilogue of a product that torch has computed."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    y = activate(tl.load(p_product + i, mask=mask).to(tl.float32), ACTIVATION)
    if p_gate is not None:
        y *= tl.load(p_gate + i, mask=mask).to(tl.float32)
    if ADD:
        y += tl.load(p_y + i, mask=mask).to(tl.float32)
    tl.store(p_y + i, y, mask=mask)


def linear(
    x: Tensor,
    weight: Tensor,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    fixed_tiles: bool = False,
) -> Tensor:
    """act(x W^T) * gate, or that added to `out`.

    Few tokens, and up to 1024 where there is an epilogue, are multiplied by this module's kernel, with the whole
    epilogue fused; others by torch, with at most one launch more for the epilogue. `CHOICES` and `FUSED` decide by M, N
    and K.

    Args:
        x: [M, K], or [n, M, K] for n products of one shape; float32, bfloat16 or float16, contiguous.
        weight: [N, K] or [n, N, K], dtype of `x`, contiguous.
        activation: "squared_relu", "sigmoid", "tanh" or None.
        gate: shape of the result, dtype of `x`; multiplies the activated product.
        out: shape of the result, dtype of `x`. **Updated in place**: the result is added to it; it is returned.
        dtype: of the result; that of `x` where None. Not used where `out` is given.
        fixed_tiles: this module's kernel for every M, with a tile and an order of summation that depend on the weight
            only: a row's bits do not depend on M or on the other rows.

    Returns:
        [M, N] or [n, M, N].

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: sums and epilogue in float32, rounded once; torch's product is rounded to the dtype of `x` before the
        epilogue.
    Graph-safe: no allocation besides the result and torch's product, no host sync.
    """
    shape = _check(x, weight, gate, out)
    *batch, num_tokens, num_rows = shape
    depth, dtype = x.shape[-1], (dtype or x.dtype) if out is None else out.dtype
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device=x.device) if out is None else out
    total_rows = num_rows * (batch[0] if batch else 1)
    if fixed_tiles:
        tile: Tile | None = fixed_tile(total_rows, x.dtype)
    else:
        # The library can widen a result, and nothing else.
        has_library = not is_interpreted() and dtype in (x.dtype, torch.float32)
        has_epilogue = activation is not None or gate is not None
        tile = choose_tile(num_tokens, total_rows, depth, x.dtype, has_library, has_epilogue)
    if tile is None:
        return _multiply_by_library(x, weight, activation, gate, out, dtype)
    y = torch.empty(shape, dtype=dtype, device=x.device) if out is None else out
    sizes, epilogue = (num_tokens, num_rows, depth), {"ACTIVATION": activation, "ADD": out is not None}
    num_products = batch[0] if batch else 1
    launch_product(linear_kernel, (x, weight, gate, y), sizes, tile, num_products, **epilogue, UPCAST=is_interpreted())
    return y


def _check(x: Tensor, weight: Tensor, gate: Tensor | None, out: Tensor | None) -> tuple[int, ...]:
    """The shape of the result.

    Raises:
        ValueError: a tensor is not as `linear` says.
    """
    if x.dim() not in (2, 3):
        raise ValueError(f"x: got {list(x.shape)}, expected [M, K] or [n, M, K]")
    *batch, num_tokens, depth = x.shape
    num_rows = weight.shape[-2] if weight.dim() > 1 else 0
    check("x", x, x.shape, x.dtype, weight.device)
    check("weight", weight, (*batch, num_rows, depth), x.dtype, x.device)
    shape = (*batch, num_tokens, num_rows)
    check_all({"gate": gate, "out": out}, shape, x.dtype, x.device)
    return shape


def _multiply_by_library(
    x: Tensor, weight: Tensor, activation: str | None, gate: Tensor | None, out: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """torch's product, and one launch more for an epilogue that torch cannot fuse."""
    is_single = x.dim() == 2
    transposed = weight.transpose(-1, -2)
    has_epilogue = activation is not None or gate is not None
    if out is not None and not has_epilogue:
        return out.addmm_(x, transposed) if is_single else out.baddbmm_(x, transposed)
    multiply = torch.mm if is_single else torch.bmm
    product = multiply(x, transposed) if dtype == x.dtype else multiply(x, transposed, out_dtype=dtype)
    if not has_epilogue:
        return product
    y = product if out is None else out
    constants = {"ACTIVATION": activation, "ADD": out is not None, "BLOCK": FINISH_BLOCK}
    options = {"num_warps": FINISH_WARPS, "num_stages": 1, "enable_fp_fusion": True}
    grid = (ceil_div(y.numel(), FINISH_BLOCK),)
    start_kernel(finish_kernel, grid, (product, gate, y, y.numel()), constants | options)
    return y


unsupported_reason = probed("linear")
rows_independent = True


class _Use(NamedTuple):
    """A matrix of a model as `linear` is called with it."""

    label: str
    tokens: int | None
    """Up to so many; None for fixed tiles."""
    rows: int
    depth: int
    dtype: torch.dtype = torch.bfloat16
    num_products: int = 1
    activation: str | None = None
    gate: bool = False
    add: bool = False
    result: torch.dtype | None = None

    def specialization(self, is_probe: bool) -> Specialization:
        total = self.num_products * self.rows
        if self.tokens is None:
            tile: Tile | None = fixed_tile(total, self.dtype)
        else:
            tile = choose_tile(self.tokens, total, self.depth, self.dtype, True, bool(self.activation or self.gate))
        assert tile is not None, self
        name = TYPES[self.dtype]
        label = f"{self.label} {name} {'fixed' if self.tokens is None else f'M <= {self.tokens}'}"
        signature = {
            **pointers(name, "x", "weight", *(("gate",) if self.gate else ())),
            **pointers(TYPES[self.result or self.dtype], "y"),
            "num_tokens": "i32",
        }
        constexprs = {
            **({} if self.gate else {"p_gate": None}),
            **product_constants(self.rows, self.depth, tile),
            "ACTIVATION": self.activation,
            "ADD": self.add,
            "UPCAST": False,
        }
        return Specialization(label, linear_kernel, signature, constexprs, tile.num_warps, tile.num_stages, is_probe)


def _finish(use: str, activation: str | None, gate: bool, add: bool, is_probe: bool = False) -> Specialization:
    signature = {**pointers("bf16", "product", "y", *(("gate",) if gate else ())), "count": "i32"}
    constexprs = {
        **({} if gate else {"p_gate": None}),
        "ACTIVATION": activation,
        "ADD": add,
        "BLOCK": FINISH_BLOCK,
    }
    return Specialization(f"{use} after the library", finish_kernel, signature, constexprs, FINISH_WARPS, 1, is_probe)


def specializations() -> list[Specialization]:
    """The compilations for a model of width 768: every tile, with the epilogue that it has most often."""
    fp16, fp32 = torch.float16, torch.float32
    probe = _Use("key with DeepEmbed", None, 16384, 4096, activation="squared_relu", gate=True)
    uses = (
        _Use("r, k, v", 16, 768, 768, num_products=3),
        _Use("output", 16, 768, 768, add=True),
        _Use("key", 16, 3072, 768, activation="squared_relu"),
        _Use("value of v4", 16, 768, 3072, gate=True, add=True),
        _Use("head", 16, 65536, 768, result=fp32),
        _Use("head of v4", 16, 50277, 768, result=fp32),
        _Use("receptance", 64, 768, 768, activation="sigmoid"),
        _Use("r, k, v", 64, 768, 768, num_products=3),
        _Use("key with DeepEmbed", 256, 3072, 768, activation="squared_relu", gate=True),
        _Use("value of v4", None, 768, 3072, gate=True, add=True),
        _Use("key", 1024, 8192, 2048, activation="squared_relu"),
        probe,
        _Use("head", None, 65536, 768, result=fp32),
        _Use("value", 16, 768, 3072, fp16, add=True),
        _Use("head", None, 65536, 4096, fp16, result=fp32),
        _Use("key with DeepEmbed", None, 3072, 768, fp16, activation="squared_relu", gate=True),
        _Use("value of v4", 16, 768, 3072, fp32, gate=True, add=True),
        _Use("receptance", 16, 768, 768, fp32, activation="sigmoid"),
        _Use("key with DeepEmbed", None, 3072, 768, fp32, activation="squared_relu", gate=True),
    )
    return [
        *(use.specialization(is_probe=use is probe) for use in uses),
        _finish("key", "squared_relu", gate=False, add=False),
        _finish("value of v4", None, gate=True, add=True, is_probe=True),
    ]
