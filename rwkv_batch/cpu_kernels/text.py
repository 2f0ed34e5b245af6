"""The text of sampled tokens: search for stop strings token by token, and token ids → valid UTF-8 (csrc/text.cpp).

Buffers and their addresses are kept from call to call: taking an address costs as much as a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import numpy as np

from .build import library

_INT, _POINTER = ctypes.c_int64, ctypes.c_void_p


class TableStruct(ctypes.Structure):
    """`TokenTable` of csrc/text.cpp."""

    _fields_ = (("num_ids", _INT), ("bytes", _POINTER), ("start", _POINTER))


class PushTokens(ctypes.Structure):
    """`PushTokens` of csrc/text.cpp."""

    _fields_ = (
        ("num_rows", _INT),
        ("num_slots", _INT),
        ("table", TableStruct),
        *((name, _POINTER) for name in ("slots", "token_ids", "automaton", "state", "ignored_tokens", "text_bytes")),
        *((name, _POINTER) for name in ("index", "pattern", "end")),
    )


class DecodeTokens(ctypes.Structure):
    """`DecodeTokens` of csrc/text.cpp."""

    _fields_ = (
        ("num_texts", _INT),
        ("table", TableStruct),
        *((name, _POINTER) for name in ("token_ids", "offsets", "limits", "data", "data_offsets")),
    )


@cache
def _functions() -> ctypes.CDLL:
    functions = library()
    functions.stop_automaton_new.argtypes = (_INT, ctypes.c_char_p, _POINTER)
    functions.stop_automaton_new.restype = _POINTER
    functions.stop_automaton_free.argtypes = (_POINTER,)
    functions.stop_automaton_free.restype = None
    functions.stop_push.argtypes = (ctypes.POINTER(PushTokens),)
    functions.stop_push.restype = _INT
    functions.tokens_size.argtypes = (ctypes.POINTER(TableStruct), _INT, _POINTER)
    functions.tokens_size.restype = _INT
    functions.tokens_to_utf8.argtypes = (ctypes.POINTER(DecodeTokens),)
    functions.tokens_to_utf8.restype = None
    return functions


def address(array: np.ndarray) -> int:
    """The address of a contiguous array."""
    return array.__array_interface__["data"][0]


def concatenate(pieces: Sequence[bytes | None]) -> tuple[bytes, np.ndarray]:
    """All bytes in one string, and where each piece starts: [n + 1] int64. None has no bytes."""
    present = [piece or b"" for piece in pieces]
    return b"".join(present), np.fromiter(accumulate(map(len, present), initial=0), np.int64, len(present) + 1)


class TokenTable:
    """The bytes of all tokens, in memory that native code reads; None has no bytes."""

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        data, self._start = concatenate(token_bytes)
        self._data = np.frombuffer(data, np.uint8)
        self.struct = TableStruct(num_ids=len(token_bytes), bytes=address(self._data), start=address(self._start))


class Automaton:
    """Finds the first end of any of several patterns, the longest of those that end there."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        data, start = concatenate(patterns)
        functions = _functions()
        self._free = functions.stop_automaton_free
        self.address: int = functions.stop_automaton_new(len(patterns), data, address(start))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._free(self.address)


class StopPusher:
    """The texts of all slots, advanced together.

    Args:
        table: the bytes of the tokens.
        num_slots: P; slots are 0 to P - 1.
    """

    def __init__(self, table: TokenTable, num_slots: int) -> None:
        self._table = table
        self._automata: list[Automaton | None] = [
            None
        ] * num_slots  # keeps the objects alive that `automaton` points to
        names = ("slots", "token_ids", "automaton", "state", "ignored_tokens", "text_bytes", "index", "pattern", "end")
        self._arrays = {name: np.zeros(num_slots, np.int64) for name in names}
        self._slots, self._token_ids = self._arrays["slots"], self._arrays["token_ids"]
        self._arguments = PushTokens(
            num_slots=num_slots,
            table=table.struct,
            **{name: address(array) for name, array in self._arrays.items()},
        )
        self._reference = ctypes.pointer(self._arguments)
        self._push = _functions().stop_push

    def start(self, slot: int, automaton: Automaton, min_tokens: int) -> None:
        """A new, empty text begins in `slot`; matches that end in its first `min_tokens` tokens do not count."""
        arrays = self._arrays
        self._automata[slot] = automaton
        arrays["automaton"][slot] = automaton.address
        arrays["state"][slot] = arrays["text_bytes"][slot] = 0
        arrays["ignored_tokens"][slot] = min_tokens

    def push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[tuple[int, int, int]]:
        """Append token_ids[i] to the text of slots[i], for slots that differ.

        Returns:
            For each match its index i, its pattern's number and the length of the text up to its end, in bytes.

        Raises:
            IndexError: a slot does not exist.
        """
        n = len(slots)
        self._slots[:n] = slots
        self._token_ids[:n] = token_ids
        self._arguments.num_rows = n
        found = self._push(self._reference)
        if not found:
            return []
        if found < 0:
            raise IndexError(f"slots: got {min(slots)} to {max(slots)}, expected 0 to {len(self._automata) - 1}")
        index, pattern, end = (self._arrays[name][:found].tolist() for name in ("index", "pattern", "end"))
        return list(zip(index, pattern, end, strict=True))


def decode(
    table: TokenTable, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids → UTF-8 of several texts.

    Args:
        token_ids: [N] int32, contiguous as all three.
        offsets: [n + 1] int64, from 0 to N, ascending.
        limits: [n] int64, bytes of each text; negative: all.

    Returns:
        uint8 data, and its offsets, [n + 1] int64.
    """
    functions = _functions()
    # U+FFFD has three bytes and stands for at least one.
    size = 3 * functions.tokens_size(table.struct, len(token_ids), address(token_ids))
    data, data_offsets = np.empty(size, np.uint8), np.empty(len(offsets), np.int64)
    functions.tokens_to_utf8(
        DecodeTokens(
            num_texts=len(limits),
            table=table.struct,
            token_ids=address(token_ids),
            offsets=address(offsets),
            limits=address(limits),
            data=address(data),
            data_offsets=address(data_offsets),
        )
    )
    return data[: data_offsets[-1]], data_offsets
