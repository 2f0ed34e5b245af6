"""Counter-based random numbers: a function of (seed, row, sample, position) and of nothing else.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Computes four random words for each row.

    Args:
        counter: [B, 4] int64, each in [0, 2^32).
        key: [B, 2] int64, each in [0, 2^32).

    Returns:
        [B, 4] int64, each in [0, 2^32).
    """
    c0, c1, c2, c3 = counter.unbind(1)
    k0, k1 = key.unbind(1)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), 1)


def stream_words(seed: int, row: int, sample: int) -> tuple[int, int, int, int, int]:
    """The words that identify a random stream: two key words, and three counter words. The fourth is the position."""
    seed &= 2**64 - 1
    return seed & _MASK, seed >> 32, row & _MASK, (row >> 32) & _MASK, sample & _MASK


def uniform(streams: Tensor, position: Tensor) -> Tensor:
    """Draws one number in [0, 1) with 53 random bits for each row.

    Args:
        streams: [B, 5] int64, rows of `stream_words`.
        position: [B] int64, index of the sampled token in its completion.
    """
    counter = torch.cat((position[:, None], streams[:, 2:]), 1)
    words = philox(counter, streams[:, :2])
    return ((words[:, 0] << 21) | (words[:, 1] >> 11)).double() * 2.0**-53
