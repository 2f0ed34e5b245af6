"""Counter-based random numbers inside kernels; see engine/philox.py for the definition."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four random words from four words of counter and two of key, all uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def uniform(p_stream, position):
    """A float64 in [0, 1) with 53 random bits.

    Args:
        p_stream: the five words of a stream, int64 each: two of the key, three of the counter.
        position: int64, index of the sampled token in its completion.
    """
    k0 = tl.load(p_stream).to(tl.uint32)
    k1 = tl.load(p_stream + 1).to(tl.uint32)
    c1 = tl.load(p_stream + 2).to(tl.uint32)
    c2 = tl.load(p_stream + 3).to(tl.uint32)
    c3 = tl.load(p_stream + 4).to(tl.uint32)
    high, low, _, _ = philox(position.to(tl.uint32), c1, c2, c3, k0, k1)
    return ((high.to(tl.int64) << 21) | (low >> 11).to(tl.int64)).to(tl.float64) * (2.0**-53)
