"""Stochastic rounding of a float16 state. This module is the definition; kernels repeat it bit by bit.

Why: each token multiplies a state by a decay close to 1. Where one token changes a number by less than half of
float16's step, rounding to nearest undoes the change at every token, and the number never decays.

How: between two neighboring float16 values lie 2^13 float32 values, told apart by the 13 mantissa bits that float16
lacks. Let these bits be the integer f, from 0 to 8191. A random integer of 13 bits, uniform, is added to the float32's
bits, and the 13 low bits are cut off. The sum carries into the bits that stay with a probability of f / 8192: the
number is rounded up (away from 0) with a probability equal to its distance from the lower value, in steps. The
expected result is x: the rounding is unbiased, and over many tokens the mean follows the float32 state.

Key: the random bits are a hash of the token's position in its sequence, and of the number's row and column in the
record. They do not depend on the slot, the batch, the backend, or on how the prompt was cut into chunks, and so
neither does a row's state. The bits are the hash of the row plus the hash of the column, modulo 2^32: R * N numbers
take R + N hashes.

Copies: `round_stochastically` in triton_kernels/recurrence.py and `round_state` in cuda_kernels/csrc/heads.h.
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

        bits = (hash(row) + hash(~column)) >> 19
        hash(place):   h = p ^ (place * 0x85EBCA77);  h ^= h >> 16;  h *= 0x7FEB352D;  h ^= h >> 15;  h *= 0x846CA68B
    """

    def hash_position(place: Tensor) -> Tensor:
        h = (position.long()[:, None] * 0x9E3779B1) & _MASK ^ (place * 0x85EBCA77) & _MASK
        h = (h ^ h >> 16) * 0x7FEB352D & _MASK
        return (h ^ h >> 15) * 0x846CA68B & _MASK

    rows = hash_position(torch.arange(num_rows, device=position.device))
    columns = hash_position(_MASK - torch.arange(num_columns, device=position.device))
    return ((rows[:, :, None] + columns[:, None, :] & _MASK) >> 32 - _DROPPED_BITS).int()
