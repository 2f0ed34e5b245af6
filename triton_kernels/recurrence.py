"""What the recurrences share: inside the kernels, and at their launch."""

from __future__ import annotations

import triton
import triton.language as tl

NUM_WARPS = {16: 1, 32: 1, 64: 2, 128: 8}
"""Head size → warps of a program, which keeps one head's state [K, V] in registers. With 64 numbers of it in a thread
nothing spills. Fixed, as it orders the sums: what a row gets must not depend on who is beside it."""
NUM_STAGES = 1
"""There is nothing to pipeline: the kernels load the next token's vectors themselves."""
LAUNCH = {"num_stages": NUM_STAGES, "enable_fp_fusion": True}


@triton.jit
def load_vector(pointer, offset, channel, mask=None):  # type: ignore[no-untyped-def]
    """One token's vector of one input, as float32; zeros where there is no such input."""
    if pointer is not None:
        x = tl.load(pointer + offset + channel, mask=mask).to(tl.float32)
    else:
        x = tl.zeros_like(channel).to(tl.float32)
    return x


@triton.jit
def write_zeros(p_out, start, end, channel, WIDTH: tl.constexpr, mask=None):  # type: ignore[no-untyped-def]
    """The output of a padding row, tokens start:end."""
    offset = start.to(tl.int64) * WIDTH
    for _ in range(start, end):
        tl.store(p_out + offset + channel, 0.0, mask=mask)
        offset += WIDTH


@triton.jit
def head_norm(y, weight, bias, eps, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Group norm of one head's read-out [N]."""
    centred = y - tl.sum(y, 0) / N
    variance = tl.sum(centred * centred, 0) / N
    return centred * tl.rsqrt(variance + eps) * weight + bias


@triton.jit
def element_hash(element):  # type: ignore[no-untyped-def]
    """The share of an element's place in what `round_stochastically` draws; those of two places add up."""
    return element.to(tl.uint32, bitcast=True) * 0x85EBCA77


@triton.jit
def unhoisted(x, position):  # type: ignore[no-untyped-def]
    """x, as if each token changed it: else the compiler holds each element's hash in a register through the loop."""
    return x + tl.minimum(position, 0).to(tl.uint32, bitcast=True)


@triton.jit
def round_stochastically(x, position, element_hash):  # type: ignore[no-untyped-def]
    """Round float32 to what float16 holds, up or down with probabilities that keep the mean.

    To the last bit as `round_stochastically` in models/rounding.py: changes go into both.

    Args:
        x: float32.
        position: int32 scalar, how many tokens the sequence had before this one.
        element_hash: uint32, shape of `x`: `element_hash` of each number's place in the record.

    Returns:
        float32, unchanged by a conversion to float16. Beyond float16's range it is infinite.
    """
    h = (position.to(tl.uint32, bitcast=True) * 0x9E3779B1) ^ element_hash
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    draw = (h ^ (h >> 16)) >> 19  # 13 bits: what float32's mantissa has and float16's has not
    bits = x.to(tl.uint32, bitcast=True)
    magnitude = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    normal = (((bits & 0x7FFFFFFF) + draw) & 0xFFFFE000).to(tl.float32, bitcast=True)
    # Below 2^-14 float16 has steps of 2^-24. draw * 2^-13 comes from bits, as converting integers is slow.
    share = ((draw << 10) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    subnormal = tl.floor(magnitude * 16777216.0 + share) * (1.0 / 16777216.0)
    rounded = tl.where(magnitude < 0.00006103515625, subnormal, normal)
    rounded = tl.where(rounded > 65504.0, float("inf"), rounded)
    return (rounded.to(tl.uint32, bitcast=True) | (bits & 0x80000000)).to(tl.float32, bitcast=True)
