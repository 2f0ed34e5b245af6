"""Mathematics that several versions share: layer norm, token shift, group norm; and the definition of `shift_lerp`."""

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
    """Layer norm of each row: [M, C] → [M, C]."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, LAYER_NORM_EPS)


LAYER_NORM = OpSpec("layer_norm", layer_norm, optional=True, is_recorded=False)


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """The rows of a table [n, C] that an index [M] int64 names: [M, C]."""
    return table[index]


TAKE_ROWS = OpSpec("take_rows", take_rows, optional=True, is_recorded=False)


def widened(x: Tensor) -> Tensor:
    """x in the dtype of recurrences: float64 stays float64, all other dtypes become float32."""
    return x if x.dtype == torch.float64 else x.float()


def shift_lerp(
    x: Tensor, norm: Norm, mix: Tensor, shift: Tensor, rows: Rows, keep_parts: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Layer norm, then the token shift: interpolations of each token with the token before it in its sequence.

        z_t = layer_norm(x_t),   d_t = z_{t-1} - z_t,   mixed[j]_t = z_t + d_t * mix[j]

    Args:
        x: [M, C].
        mix: [n, C], the weight of the previous token in each of n interpolations.
        shift: [P, C], z of each slot's latest token. **Updated in place** in the rows' slots.
        keep_parts: return z and d too.

    Returns:
        z [M, C] and d [M, C], or None for both; and the interpolations [n, M, C].
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
    mixed = torch.addcmul(normed, delta, mix[:, None])
    return (normed, delta, mixed) if keep_parts else (None, None, mixed)


SHIFT_LERP = OpSpec("shift_lerp", shift_lerp)


def head_norm(y: Tensor, norm: Norm, num_heads: int, eps: float) -> Tensor:
    """Group norm over each head: [M, H * N] float32 → the same."""
    return F.group_norm(y, num_heads, norm.weight, norm.bias, eps)
