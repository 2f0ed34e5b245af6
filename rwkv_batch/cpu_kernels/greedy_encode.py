"""Greedy longest match: many texts → token ids in one call (csrc/greedy_encode.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from .build import library
from .text import address, concatenate

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class GreedyEncode(ctypes.Structure):
    """`GreedyEncode` of csrc/greedy_encode.cpp."""

    _fields_ = (
        ("trie", _POINTER),
        ("num_texts", _INT),
        *((name, _POINTER) for name in ("bytes", "offsets", "ids", "id_offsets", "unmatched")),
    )


@cache
def _functions() -> ctypes.CDLL:
    functions = library()
    functions.greedy_trie_new.argtypes = (_INT, ctypes.c_char_p, _POINTER, _POINTER)
    functions.greedy_trie_new.restype = _POINTER
    functions.greedy_trie_free.argtypes = (_POINTER,)
    functions.greedy_trie_free.restype = None
    functions.greedy_encode.argtypes = (ctypes.POINTER(GreedyEncode),)
    functions.greedy_encode.restype = None
    return functions


class GreedyTrie:
    """Greedy longest match over any byte string. It does not change once built, so that threads may share it.

    Args:
        tokens: id → bytes. Of several ids with the same bytes the last one counts.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        data, start = concatenate(list(tokens.values()))
        ids = np.fromiter(tokens, np.int32, len(tokens))
        functions = _functions()
        self._free = functions.greedy_trie_free
        self._address: int = functions.greedy_trie_new(len(ids), data, address(start), address(ids))

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._free(self._address)

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of n byte strings.

        Returns:
            All ids [N] int32; offsets [n + 1] int64: text i has ids[offsets[i]:offsets[i + 1]]; and [n] int64, the
            position of the byte at which no token matches and the ids of the text end; -1 where all bytes match.
        """
        joined, offsets = concatenate(texts)
        data = np.frombuffer(joined, np.uint8)
        ids = np.empty(len(data), np.int32)
        id_offsets, unmatched = np.empty(len(texts) + 1, np.int64), np.empty(len(texts), np.int64)
        _functions().greedy_encode(
            GreedyEncode(
                trie=self._address,
                num_texts=len(texts),
                bytes=address(data),
                offsets=address(offsets),
                ids=address(ids),
                id_offsets=address(id_offsets),
                unmatched=address(unmatched),
            )
        )
        # Copied, as there are far fewer ids than bytes: the buffer is freed.
        return ids[: id_offsets[-1]].copy(), id_offsets, unmatched
