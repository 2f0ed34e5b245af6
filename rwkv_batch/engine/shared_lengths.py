"""Sorts prompts by their token ids, and counts the leading tokens that neighbors share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ..cpu_kernels.build import unavailable
from ..cpu_kernels.prefixes import sort_prompts


def sorted_with_shared_lengths(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sorts n prompts, and counts the leading tokens that each shares with the one before it.

    The native library does it; without a compiler, numpy does it, with the same results.

    Args:
        prompts: [T] int32 each, token ids from 0; T may be 0.

    Returns:
        order [n] int64: the prompts' indices in lexicographic order. A prompt comes before the longer ones that start
        with it. Equal prompts keep the order in which they were given.
        shared [n] int64: leading tokens that prompt order[i] has in common with prompt order[i - 1]; 0 for i = 0.
    """
    if not prompts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if unavailable():
        return _sorted_by_numpy(prompts)
    token_ids = np.concatenate(prompts, dtype=np.int32, casting="unsafe")
    offsets = np.fromiter(accumulate(map(len, prompts), initial=0), np.int64, len(prompts) + 1)
    return sort_prompts(token_ids, offsets)


def _sorted_by_numpy(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    # Big-endian numbers that are not negative sort as bytes as they do as numbers.
    keys = [prompt.astype(">i4").tobytes() for prompt in prompts]
    order = np.array(sorted(range(len(prompts)), key=keys.__getitem__), np.int64)
    shared = np.zeros(len(prompts), np.int64)
    for i in range(1, len(prompts)):
        before, prompt = prompts[order[i - 1]], prompts[order[i]]
        limit = min(len(before), len(prompt))
        differs = np.flatnonzero(before[:limit] != prompt[:limit])
        shared[i] = differs[0] if len(differs) else limit
    return order, shared
