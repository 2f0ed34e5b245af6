"""Sorts prompts and counts the leading tokens that neighbors share (csrc/prefixes.cpp)."""

from __future__ import annotations

import ctypes

import numpy as np

from .build import library
from .text import address


class SortPrompts(ctypes.Structure):
    """`SortPrompts` of csrc/prefixes.cpp."""

    _fields_ = (
        ("num_prompts", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("token_ids", "offsets", "order", "shared")),
    )


def sort_prompts(token_ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of n prompts by their token ids, and how many leading tokens each shares with the one before it.

    Args:
        token_ids: [N] int32, contiguous, from 0: the tokens of all prompts one after the other.
        offsets: [n + 1] int64: prompt i has the tokens from offsets[i] to offsets[i + 1] - 1.

    Returns:
        order and shared, [n] int64 each.
    """
    n = len(offsets) - 1
    order, shared = np.empty(n, np.int64), np.empty(n, np.int64)
    arguments = SortPrompts(
        num_prompts=n,
        token_ids=address(token_ids),
        offsets=address(offsets),
        order=address(order),
        shared=address(shared),
    )
    library().sort_prompts(ctypes.byref(arguments))
    return order, shared
