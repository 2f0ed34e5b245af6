"""Stochastic rounding of a float16 state. This module is the definition; kernels repeat it bit by bit.

Why: each token multiplies a state by a decay close to 1. Where one token changes a number by less than half of
float16's step, rounding to nearest undoes the change at every token, and the number never decays.

How: between two neighboring float16 values lie 2^13 float32 values, told apart by the 13 mantissa bits that float16
lacks. Let these bits be the integer f, from 0 to 8191. A random integer of 13 bits, uniform, is added to the float32's
bits, and the 13 low bits are cut off. The sum carries into the bits that stay with a probability of f / 8192: the
number is rounded up (away from 0) with a probability equal to its distance from the lower value, in steps. The
expected result is x: the rounding is unbiased, and over many tokens the mean follows the float32 state.

Key: the random bits are a function of the token's position in its sequence, of the head, and of the number's row and
column in the head's state. They do not depend on the slot, the batch, the backend, or on how the prompt was cut into
chunks, and so neither does a row's state. Layers, and sequences at the same position, have the same random bits.

Cost: a GPU's thread has seven instructions for each number: one product for the random bits, the sum, the cut, two
products, and two for the choice of the second factor. Those for each token, row and column come to less than one more.

Copies: `round_stochastically` in triton_kernels/recurrence.py and `round_state` in cuda_kernels/csrc/heads.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 65504.0
"""The largest finite float16."""
MAX_SIZE = 128
"""The largest head size that `random_bits` is made for."""
_DROPPED_BITS = 13
"""Mantissa bits of float32 (23) that float16 (10) lacks."""
_MASK = 0xFFFFFFFF


def round_stochastically(x: Tensor, position: Tensor) -> Tensor:
    """Round float32 numbers to numbers that float16 holds.

    Args:
        x: [B, H, K, V] float32, the state of one layer for each row of the batch.
        position: [B] integers, tokens of each row's sequence before this one.

    Returns:
        As `x`, float32, unchanged by a conversion to float16. Magnitudes above `LARGEST` become infinite, NaN stays
        NaN, and zero keeps its sign.

    Numerics: exact where float32 has subnormal numbers; with `torch.set_flush_denormal(True)` it has none.
    """
    # 2^-112 makes float16's subnormal numbers float32's, so that the bits to cut off are the lowest ones of each.
    bits = (x * 2.0**-112).view(torch.int32) + random_bits(position, *x.shape[1:])
    # An infinite factor is right for NaN too: bits of a NaN plus random bits are those of a NaN or, cut off, of zero.
    scale = torch.where(x.abs() <= LARGEST, 2.0**112, torch.inf)
    return (bits & -(1 << _DROPPED_BITS)).view(torch.float32) * scale


def random_bits(position: Tensor, num_heads: int, num_rows: int, num_columns: int) -> Tensor:
    """A random number of 13 bits for each element of each state, [B, heads, rows, columns] int32.

    It is the high end of a product of a factor of the element's row and one of its column, so that a head needs
    rows + columns factors. In arithmetic modulo 2^32:

        h = position * 0x9E3779B1 + head * 0x85EBCA77 + 0xC2B2AE3D
        h = (h ^ h >> 16) * 0x7FEB352D
        h = (h ^ h >> 15) * 0x846CA68B
        spread(place) = (place * 0x01010101) ^ (place * 0x02040810)
        bits = (spread(row) ^ h ^ h >> 16) * (spread(column) ^ h * 0x9E3779B1) >> 19

    `spread` repeats the 7 bits of a row or column over 32 bits, twice, without carries: it is linear in these bits. A
    thread of a kernel computes it once, and has the factor of another of its rows with one exclusive or. The two copies
    overlap, so that the factors of rows 0, 1, 2, 3, … are no arithmetic progression.

    Args:
        position: [B] integers from 0 to 2^31 - 1.
        num_rows, num_columns: up to `MAX_SIZE`.
    """
    head = torch.arange(num_heads, device=position.device)
    h = (position.long()[:, None] * 0x9E3779B1 + head * 0x85EBCA77 + 0xC2B2AE3D) & _MASK
    h = (h ^ h >> 16) * 0x7FEB352D & _MASK
    h = (h ^ h >> 15) * 0x846CA68B & _MASK
    row = _spread(num_rows, position.device) ^ (h ^ h >> 16)[..., None]
    column = _spread(num_columns, position.device) ^ (h * 0x9E3779B1)[..., None]
    product = row.int()[..., :, None] * column.int()[..., None, :]
    return product >> 32 - _DROPPED_BITS & (1 << _DROPPED_BITS) - 1


def _spread(count: int, device: torch.device) -> Tensor:
    """`spread` of the places 0 to count - 1, [count] int64."""
    place = torch.arange(count, device=device)
    return (place * 0x01010101) ^ (place * 0x02040810)
