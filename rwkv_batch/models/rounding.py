<<<<<<< HEAD
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
=======
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
>>>>>>> refs/heads/kernels
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
<<<<<<< HEAD
    """Round float32 numbers to numbers that float16 holds.
=======
    """Rounds float32 to values that float16 holds, up or down with probabilities that keep the mean.
>>>>>>> refs/heads/kernels

    Args:
        x: [B, ..., V] float32, the state of one layer for each row of the batch.
        position: [B] integers, tokens of each row's sequence before this one.

    Returns:
        As `x`, float32, unchanged by a conversion to float16. Magnitudes beyond float16's range become infinite, and
        NaN stays NaN.
    """
<<<<<<< HEAD
    # Below 2^-14, float16 is subnormal: its steps are 2^-24, as they are from 2^-14 to 2^-13. Numbers below 2^-14 are
    # moved there, rounded, and moved back.
=======
    # Below 2^-14, float16 has the same step as between 2^-14 and 2^-13: 2^-24. Adding 2^-14 moves smaller numbers into
    # that interval, where the step is 13 mantissa bits.
>>>>>>> refs/heads/kernels
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

<<<<<<< HEAD
    def mix(index: Tensor) -> Tensor:
        h = (position.long()[:, None] * 0x9E3779B1) & _MASK ^ (index * 0x85EBCA77) & _MASK
=======
    def hash_position(place: Tensor) -> Tensor:
        h = (position.long()[:, None] * 0x9E3779B1) & _MASK ^ (place * 0x85EBCA77) & _MASK
>>>>>>> refs/heads/kernels
        h = (h ^ h >> 16) * 0x7FEB352D & _MASK
        return (h ^ h >> 15) * 0x846CA68B & _MASK

    rows = hash_position(torch.arange(num_rows, device=position.device))
    columns = hash_position(_MASK - torch.arange(num_columns, device=position.device))
    return ((rows[:, :, None] + columns[:, None, :] & _MASK) >> 32 - _DROPPED_BITS).int()
