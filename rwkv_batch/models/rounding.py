"""Stochastic rounding of a float16 state: rounding to nearest would stop a quiet channel from ever forgetting."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 65504.0
"""The largest finite float16."""
SMALLEST_NORMAL = 2.0**-14
_DROPPED_BITS = 13
"""Mantissa bits that float32 has and float16 has not."""


def round_stochastically(x: Tensor, position: Tensor) -> Tensor:
    """Round float32 to values that float16 can hold, up or down with probabilities that keep the mean.

    The random bits are a function of the token's position in its sequence and of the element's place in the record,
    never of the slot or the batch: a row's state does not depend on its company or on how its prompt was cut.

    Args:
        x: [B, ...] float32, one record a row.
        position: [B] integers, how many tokens the sequence had before this one.

    Returns:
        As `x`, float32, unchanged by a conversion to float16. Beyond float16's range it is infinite.
    """
    element = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
    draws = random_bits(position.long().view(-1, *(1,) * (x.dim() - 1)), element)
    magnitude = x.abs()
    normal = ((magnitude.view(torch.int32) + draws) & -(1 << _DROPPED_BITS)).view(torch.float32)
    subnormal = torch.floor(magnitude * 2.0**24 + draws * 2.0**-_DROPPED_BITS) * 2.0**-24
    rounded = torch.where(magnitude < SMALLEST_NORMAL, subnormal, normal)
    return torch.where(rounded > LARGEST, torch.inf, rounded).copysign(x)


def random_bits(position: Tensor, element: Tensor) -> Tensor:
    """13 bits for each (position, element), int32: a multiplicative hash of both, mixed by shifts and multiplications.

    In arithmetic modulo 2^32:

        h = (position * 0x9E3779B1) ^ (element * 0x85EBCA77)
        h ^= h >> 16;  h *= 0x7FEB352D;  h ^= h >> 15;  h *= 0x846CA68B;  h ^= h >> 16;   bits = h >> 19
    """
    mask = 0xFFFFFFFF
    h = (position * 0x9E3779B1) & mask ^ (element * 0x85EBCA77) & mask
    h = (h ^ h >> 16) * 0x7FEB352D & mask
    h = (h ^ h >> 15) * 0x846CA68B & mask
    return ((h ^ h >> 16) >> 32 - _DROPPED_BITS).int()
