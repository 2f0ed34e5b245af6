"""Stochastic rounding of float16 states: the definition, which the kernels follow to the bit.

A state is computed in float32 and stored after every token. Rounding to nearest would lose every change that is smaller
than half a step of float16: a state that decays slowly would never decay. Stochastic rounding keeps such changes on
average. A number between two neighbors in float16 becomes the upper one with a probability that is its distance from
the lower one in steps, so that the expected result is the number itself.

Both formats store a sign and a magnitude, and float32 has 13 mantissa bits more than float16. Therefore the rounding is
an addition to the bit pattern: a uniform random number of 13 bits is added to the lowest bits, and then those 13 bits
are cleared. The carry, which makes the magnitude one step larger, comes with probability (lowest bits) / 2^13. A number
that float16 holds never changes.

The random number is a hash of three numbers: the token's position in its sequence, and the element's row and column in
the state. Slot, batch and chunk are no part of the key: equal requests get equal states in any company.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 65504.0
"""The largest finite float16."""
SMALLEST_NORMAL = 2.0**-14
_DROPPED_BITS = 13
"""Mantissa bits of float32 (23) that float16 (10) lacks."""
_MASK = 0xFFFFFFFF


def round_stochastically(x: Tensor, position: Tensor) -> Tensor:
    """Round float32 numbers to numbers that float16 holds.

    Args:
        x: [B, ..., V] float32, the state of one layer for each row of the batch.
        position: [B] integers, tokens of each row's sequence before this one.

    Returns:
        As `x`, float32, unchanged by a conversion to float16. Magnitudes beyond float16's range become infinite, and
        NaN stays NaN.
    """
    # Below 2^-14, float16 is subnormal: its steps are 2^-24, as they are from 2^-14 to 2^-13. Numbers below 2^-14 are
    # moved there, rounded, and moved back.
    shift = torch.where(x.abs() < SMALLEST_NORMAL, torch.full_like(x, SMALLEST_NORMAL).copysign(x), 0.0)
    bits = (x + shift).view(torch.int32) + random_bits(position, x[0].numel() // x.shape[-1], x.shape[-1]).view(x.shape)
    rounded = (bits & -(1 << _DROPPED_BITS)).view(torch.float32) - shift
    kept = torch.where(rounded.abs() > LARGEST, torch.full_like(x, torch.inf).copysign(x), rounded)
    return torch.where(x.isnan(), x, kept)  # random bits added to those of a NaN may make a number


def random_bits(position: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """A random number of 13 bits for each element of each state, [B, rows, columns] int32.

    It is the sum of a hash of the element's row and a hash of its column, so that a state needs rows + columns hashes
    and not rows * columns. In arithmetic modulo 2^32, with p = position * 0x9E3779B1:

        bits = (mix(p ^ (row * 0x85EBCA77)) + mix(p ^ (~column * 0x85EBCA77))) >> 19
        mix(h):   h ^= h >> 16;  h *= 0x7FEB352D;  h ^= h >> 15;  h *= 0x846CA68B
    """

    def mix(index: Tensor) -> Tensor:
        h = (position.long()[:, None] * 0x9E3779B1) & _MASK ^ (index * 0x85EBCA77) & _MASK
        h = (h ^ h >> 16) * 0x7FEB352D & _MASK
        return (h ^ h >> 15) * 0x846CA68B & _MASK

    rows = mix(torch.arange(num_rows, device=position.device))
    columns = mix(_MASK - torch.arange(num_columns, device=position.device))
    return ((rows[:, :, None] + columns[:, None, :] & _MASK) >> 32 - _DROPPED_BITS).int()
