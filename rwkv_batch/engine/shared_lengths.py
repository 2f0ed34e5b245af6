"""Prompts in order, and how many leading tokens neighbours share."""

from __future__ import annotations

import numpy as np


def sorted_with_shared_lengths(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sort prompts by their token ids.

    Args:
        prompts: n arrays [T] int32.

    Returns:
        order [n] int64: the prompts' places, sorted; a prompt comes before those that it is a prefix of. And [n] int64:
        how many leading tokens each prompt, in that order, shares with the one before it; 0 for the first.
    """
    keys = [prompt.astype(">u4").tobytes() for prompt in prompts]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    shared = np.zeros(len(prompts), np.int64)
    for i in range(1, len(order)):
        before, prompt = prompts[order[i - 1]], prompts[order[i]]
        length = min(len(before), len(prompt))
        differs = np.flatnonzero(before[:length] != prompt[:length])
        shared[i] = differs[0] if len(differs) else length
    return np.array(order, np.int64), shared
