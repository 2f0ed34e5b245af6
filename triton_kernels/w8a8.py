"""A product of two int8 matrices with float scales; see `w8a8` in models/matrices/w8a8_linear.py for the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..kernel_support.tensor_checks import check, check_all
from ..kernel_support.unsupported import DTYPES
from .launch import power_of_two, start_kernel
from .probe import probed
from .specialization import Specialization, pointers
from .tiles import TYPES, Tile, activate, launch_product, product_constants

__all__ = ["CHOICES", "choose_tile", "quantize_kernel", "specializations", "unsupported_reason", "w8a8", "w8a8_kernel"]

QUANTIZE_BLOCK = 2048
CHOICES = (
    (16, Tile(16, 64, 256, 4, 4)),
    (64, Tile(64, 64, 128, 4, 4)),
    (1 << 62, Tile(128, 128, 128, 8, 3)),
)
"""Up to so many tokens → the tile. Predicted, not yet measured on a GPU. The sums are integers, so that a row's bits do
not depend on the tile, and so not on the number of rows."""


def choose_tile(num_tokens: int) -> Tile:
    """The tile for a number of tokens."""
    return next(tile for tokens, tile in CHOICES if num_tokens <= tokens)


@triton.jit
def quantize_kernel(p_x, p_q, p_scale, K: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Grid [M]: one row as integers in [-127, 127], and the scale that they are multiplied by."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.float32)
    poison = tl.zeros((BLOCK,), tl.float32)  # NaN where an input is not finite; a maximum ignores NaN
    for start in range(0, K, BLOCK):
        x = tl.load(p_x + row * K + start + k, mask=k < K - start, other=0.0).to(tl.float32)
        peaks = tl.maximum(peaks, tl.abs(x))
        poison += x * 0.0
    peak = tl.max(peaks, 0)
    scale = tl.where(peak == 0.0, 1.0, tl.div_rn(peak, 127.0)) + tl.sum(poison, 0)
    tl.store(p_scale + row, scale)
    for start in range(0, K, BLOCK):
        mask = k < K - start
        x = tl.load(p_x + row * K + start + k, mask=mask, other=0.0).to(tl.float32)
        q = tl.div_rn(x, tl.zeros((BLOCK,), tl.float32) + scale)
        q = (q + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest integer, halves to even
        tl.store(p_q + row * K + start + k, tl.clamp(q, -127.0, 127.0).to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def w8a8_kernel(  # type: ignore[no-untyped-def]
    p_x,
    p_weight,
    p_x_scale,
    p_scale,
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
):
    """Grid [tiles]. The weight is the first operand, so that its rows, and not the few tokens, fill the 64 rows of a
    tensor core's product.
    """
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_tile = tl.program_id(0)
    i_m, i_n = tl.swizzle2d(i_tile // tiles_n, i_tile % tiles_n, tiles_m, tiles_n, GROUP)
    m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    mask_m, mask_n = (m < num_tokens)[None, :], (n < N)[:, None]
    token = m[None, :].to(tl.int64)
    p_xs = p_x + token * K + k[:, None]
    p_weights = p_weight + n[:, None].to(tl.int64) * K + k[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K:
            mask_k = k < K - start
            x = tl.load(p_xs, mask=mask_m & mask_k[:, None], other=0)
            weight = tl.load(p_weights, mask=mask_n & mask_k[None, :], other=0)
        else:
            x = tl.load(p_xs, mask=mask_m, other=0)
            weight = tl.load(p_weights, mask=mask_n, other=0)
        total = tl.dot(weight, x, total, out_dtype=tl.int32)
        p_xs += BLOCK_K
        p_weights += BLOCK_K
    scale = tl.load(p_x_scale + m, mask=m < num_tokens)[None, :] * tl.load(p_scale + n, mask=n < N)[:, None]
    y = activate(total.to(tl.float32) * scale, ACTIVATION)
    o_y = token * N + n[:, None]
    mask = mask_m & mask_n
    if p_gate is not None:
        y *= tl.load(p_gate + o_y, mask=mask).to(tl.float32)
    if ADD:
        y += tl.load(p_y + o_y, mask=mask).to(tl.float32)
    tl.store(p_y + o_y, y, mask=mask)


def w8a8(
    x: Tensor,
    q: Tensor,
    scale: Tensor,
    activation: str | None = None,
    gate: Tensor | None = None,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """act((x̂ q^T) * scale) * gate, or that added to `out`, with x̂ the rows of x quantized to int8.

    Args:
        x: [M, K], float32, bfloat16 or float16, contiguous.
        q: [N, K], int8 in [-127, 127], contiguous.
        scale: [N], float32: what each row of `q` is a multiple of.
        activation: "squared_relu", "sigmoid", "tanh" or None.
        gate: [M, N], dtype of `x`; multiplies the activated product.
        out: [M, N], dtype of `x`. **Updated in place**: the result is added to it; it is returned.
        dtype: of the result; that of `x` where None. Not used where `out` is given.

    Returns:
        [M, N].

    Raises:
        ValueError: a shape, dtype, device or stride differs; the message names the tensor, what was given and what was
            expected.

    Numerics: sums in int32, exact up to K = 133144; the epilogue in float32, rounded once. A row's bits do not
        depend on the other rows.
    Graph-safe: no allocation besides the result, int8 [M, K] and one number a row; no host sync.
    """
    shape = _check(x, q, scale, gate, out)
    (num_tokens, num_rows), depth = shape, x.shape[1]
    y = torch.empty(shape, dtype=dtype or x.dtype, device=x.device) if out is None else out
    if not (num_tokens and num_rows):
        return y
    levels = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    x_scale = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    block = min(power_of_two(depth), QUANTIZE_BLOCK)
    constants = {"K": depth, "BLOCK": block, "num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    start_kernel(quantize_kernel, (num_tokens,), (x, levels, x_scale), constants)
    arguments, sizes = (levels, q, x_scale, scale, gate, y), (num_tokens, num_rows, depth)
    tile = choose_tile(num_tokens)
    launch_product(w8a8_kernel, arguments, sizes, tile, ACTIVATION=activation, ADD=out is not None)
    return y


def _check(x: Tensor, q: Tensor, scale: Tensor, gate: Tensor | None, out: Tensor | None) -> tuple[int, int]:
    """The shape of the result.

    Raises:
        ValueError: a tensor is not as `w8a8` says.
    """
    if x.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(f"x: got {x.dtype} {list(x.shape)}, expected [M, K] in one of {', '.join(map(str, DTYPES))}")
    if q.dim() != 2:
        raise ValueError(f"q: got {list(q.shape)}, expected [N, K]")
    (num_tokens, depth), num_rows = x.shape, len(q)
    check("x", x, x.shape, x.dtype, q.device)
    check("q", q, (num_rows, depth), torch.int8, x.device)
    check("scale", scale, (num_rows,), torch.float32, x.device)
    check_all({"gate": gate, "out": out}, (num_tokens, num_rows), x.dtype, x.device)
    return num_tokens, num_rows


unsupported_reason = probed("w8a8")


def specializations() -> list[Specialization]:
    """The compilations for models of widths 768 and 4096: every tile, with the epilogue that it has most often."""

    def product(
        tokens: int,
        rows: int,
        depth: int,
        dtype: torch.dtype,
        activation: str | None = None,
        gate: bool = False,
        add: bool = False,
        is_probe: bool = False,
    ) -> Specialization:
        tile, name = choose_tile(tokens), TYPES[dtype]
        return Specialization(
            f"[{rows}, {depth}] {name} M <= {tokens}",
            w8a8_kernel,
            {
                **pointers("i8", "x", "weight"),
                **pointers("fp32", "x_scale", "scale"),
                **pointers(name, "y", *(("gate",) if gate else ())),
                "num_tokens": "i32",
            },
            {
                **product_constants(rows, depth, tile),
                **({} if gate else {"p_gate": None}),
                "ACTIVATION": activation,
                "ADD": add,
            },
            tile.num_warps,
            tile.num_stages,
            is_probe,
        )

    def quantize(depth: int, name: str, is_probe: bool = False) -> Specialization:
        return Specialization(
            f"rows of {depth} {name}",
            quantize_kernel,
            {**pointers(name, "x"), **pointers("i8", "q"), **pointers("fp32", "scale")},
            {"K": depth, "BLOCK": min(power_of_two(depth), QUANTIZE_BLOCK)},
            4,
            1,
            is_probe,
        )

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        quantize(768, "bf16"),
        quantize(16384, "fp16", is_probe=True),
        quantize(3072, "fp32"),
        product(16, 768, 768, bf16, add=True),
        product(16, 65536, 4096, fp16),
        product(16, 768, 3072, fp32, gate=True, add=True),
        product(64, 768, 768, fp16, "sigmoid"),
        product(64, 3072, 768, bf16, "squared_relu"),
        product(1 << 20, 16384, 4096, bf16, "squared_relu", is_probe=True),
    ]
