"""Mathematics that several versions share, in plain PyTorch: the definition that kernels are compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import OpSpec
from .rows import Rows

LAYER_NORM_EPS = 1e-5


class Norm(NamedTuple):
    """Scale and shift of a layer norm or group norm, each [C]."""

    weight: Tensor
    bias: Tensor


def layer_norm(x: Tensor, norm: Norm) -> Tensor:
    """[M, C] → [M, C]."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, LAYER_NORM_EPS)


def shift_lerp(x: Tensor, norm: Norm, mix: Tensor, shift: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm, then interpolate each token with the one before it in its sequence.

        z_t = layer_norm(x_t),   d_t = z_{t-1} - z_t,   mixed[j]_t = z_t + d_t * mix[j]

    Args:
        x: [M, C].
        mix: [n, C], the share of the previous token in each of n interpolations.
        shift: [P, C]. z of each slot's latest token. **Updated in place**, only in rows' slots.

    Returns:
        z [M, C], d [M, C], and the interpolations [n, M, C].
    """
    normed = layer_norm(x, norm)
    previous = torch.empty_like(normed)
    previous[1:] = normed[:-1]
    starts = slice(0, rows.num_tokens) if rows.is_decode else rows.first
    ends = starts if rows.is_decode else rows.last
    if rows.live == slice(0, rows.num_rows):
        previous[starts] = shift[rows.live_slots]
        shift[rows.live_slots] = normed[ends]
    else:
        previous[rows.first[rows.live]] = shift[rows.live_slots]
        shift[rows.live_slots] = normed[rows.last[rows.live]]
    delta = previous.sub_(normed)
    return normed, delta, torch.addcmul(normed, delta, mix[:, None])


SHIFT_LERP = OpSpec("shift_lerp", shift_lerp)


def head_norm(y: Tensor, norm: Norm, num_heads: int, eps: float) -> Tensor:
    """Group norm over each head: [M, H * N] float32 → the same."""
    return F.group_norm(y, num_heads, norm.weight, norm.bias, eps)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, in place."""
    return F.relu(x, inplace=True).square_()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^{-x}). Unlike torch's own, each element's bits do not depend on its place in the tensor."""
    return torch.exp(-x).add_(1).reciprocal_()


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(x)
