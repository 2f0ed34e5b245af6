"""What kernels with matrix products share: tiles, activations, and a product of tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""Triton's names."""


class Tile(NamedTuple):
    """What a program computes of a product, and how it is launched."""

    tokens: int
    rows: int
    """Of the weight: output features."""
    depth: int
    """How many input features are in flight at a time."""
    num_warps: int
    num_stages: int


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
