"""Stochastic rounding of a float16 state: rounding to nearest would stop a quiet channel from ever forgetting."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 65504.0
"""The largest finite float16."""
SMALLEST_NORMAL = 2.0**-14
_DROPPED_BITS = 13
"""Mantissa bits that float32 has and float16 has not."""
_MASK = 0xFFFFFFFF


def round_stochastically(x: Tensor, position: Tensor) -> Tensor:
    """Round float32 to values that float16 can hold, up or down with probabilities that keep the mean.

    The random bits are a function of the token's position in its sequence and of the element's row and column in the
    record, never of the slot or the batch: a row's state does not depend on its company or on how its prompt was cut.

    Args:
        x: [B, ..., V] float32, one record a row.
        position: [B] integers, how many tokens the sequence had before this one.

    Returns:
        As `x`, float32, unchanged by a conversion to float16. Beyond float16's range it is infinite.
    """
    # Below its normal range float16 has steps of 2^-24, as it has just above: what is added brings all numbers there.
    shift = torch.where(x.abs() < SMALLEST_NORMAL, torch.full_like(x, SMALLEST_NORMAL).copysign(x), 0.0)
    bits = (x + shift).view(torch.int32) + random_bits(position, x[0].numel() // x.shape[-1], x.shape[-1]).view(x.shape)
    rounded = (bits & -(1 << _DROPPED_BITS)).view(torch.float32) - shift
    kept = torch.where(rounded.abs() > LARGEST, torch.full_like(x, torch.inf).copysign(x), rounded)
    return torch.where(x.isnan(), x, kept)  # random bits added to a NaN would make it a number


def random_bits(position: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """13 bits for each element of each record, [B, rows, columns] int32: a hash of its row plus one of its column.

    In arithmetic modulo 2^32, with p = position * 0x9E3779B1:

        bits = (mix(p ^ (row * 0x85EBCA77)) + mix(p ^ (~column * 0x85EBCA77))) >> 19
        mix(h):   h ^= h >> 16;  h *= 0x7FEB352D;  h ^= h >> 15;  h *= 0x846CA68B
    """

    def mix(place: Tensor) -> Tensor:
        h = (position.long()[:, None] * 0x9E3779B1) & _MASK ^ (place * 0x85EBCA77) & _MASK
        h = (h ^ h >> 16) * 0x7FEB352D & _MASK
        return (h ^ h >> 15) * 0x846CA68B & _MASK

    rows = mix(torch.arange(num_rows, device=position.device))
    columns = mix(_MASK - torch.arange(num_columns, device=position.device))
    return ((rows[:, :, None] + columns[:, None, :] & _MASK) >> 32 - _DROPPED_BITS).int()
