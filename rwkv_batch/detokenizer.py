"""Token ids → text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .cpu_kernels.build import unavailable
from .cpu_kernels.text import TokenTable, decode


class BatchDetokenizer:
    """Token ids → text, of many texts in one call. Immutable: threads may share it.

    Native code serves where there is a compiler, and Python where there is none, with the same results.

    Args:
        token_bytes: bytes by id; None, or an id beyond the end, has no bytes.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._token_bytes = token_bytes
        self._table = None if unavailable() else TokenTable(token_bytes)

    def utf8(self, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Valid UTF-8 of n texts: bytes that are not UTF-8 become U+FFFD as `bytes.decode("utf-8", "replace")` does it.

        Args:
            token_ids: [N] integers, the tokens of all texts one after the other.
            offsets: [n + 1] integers: text i has the tokens from offsets[i] to offsets[i + 1] - 1.
            limits: [n] integers: bytes of text i, counted before any becomes U+FFFD; -1: all bytes of its tokens.

        Returns:
            uint8 data, and offsets [n + 1] int64: text i is data[offsets[i]:offsets[i + 1]].

        Raises:
            ValueError: the offsets are not as many as expected, descend, or leave the tokens.
        """
        ids = np.ascontiguousarray(token_ids, dtype=np.int32)
        starts = np.ascontiguousarray(offsets, dtype=np.int64)
        cuts = np.ascontiguousarray(limits, dtype=np.int64)
        if len(starts) != len(cuts) + 1:
            raise ValueError(f"offsets: got {len(starts)} for {len(cuts)} limits, expected {len(cuts) + 1}")
        if starts[0] < 0 or starts[-1] > len(ids) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"offsets: got {starts.tolist()[:8]}…, expected ascending ones from 0 to {len(ids)}")
        if self._table is not None:
            return decode(self._table, ids, starts, cuts)
        texts = [self._decode(ids[a:b], limit) for (a, b), limit in zip(pairwise(starts), cuts.tolist(), strict=True)]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return np.frombuffer(b"".join(texts), np.uint8), ends

    def texts(self, token_ids: np.ndarray, offsets: np.ndarray, limits: np.ndarray) -> list[str]:
        """As `utf8`, as strings."""
        data, ends = self.utf8(token_ids, offsets, limits)
        utf8 = data.tobytes()
        return [utf8[a:b].decode("utf-8") for a, b in pairwise(ends.tolist())]

    def _decode(self, token_ids: np.ndarray, limit: int) -> bytes:
        table = self._token_bytes
        data = b"".join([table[i] or b"" for i in token_ids.tolist() if 0 <= i < len(table)])
        return data[: None if limit < 0 else limit].decode("utf-8", errors="replace").encode("utf-8")


class Detokenizer:
    """The text of one running sequence: collects the bytes of sampled tokens, and cuts the text at a stop string.

    Stop strings are looked for in bytes, so it makes no difference how tokens divide the text. The match that ends
    first counts; of those that end together, the longest.

    Args:
        token_bytes: bytes by id; None, or an id beyond the end, has no bytes.
        stop_strings: not empty strings.
        include_stop_str_in_output: cut after the stop string, not before it.
        min_tokens: a stop string that is complete within this many first tokens is ordinary text.

    Raises:
        UnicodeEncodeError: (a ValueError) a stop string has a lone surrogate.
    """

    __slots__ = ("_data", "_end", "_ignored_tokens", "_include", "_stops", "_table")

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        stop_strings: tuple[str, ...] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._table = token_bytes
        self._stops = _compile(stop_strings) if stop_strings else None
        self._include = include_stop_str_in_output
        self._ignored_tokens = min_tokens
        self._data = bytearray()
        self._end: int | None = None  # where the text ends; None until a stop string is found

    @property
    def watches(self) -> bool:
        """There are stop strings."""
        return self._stops is not None

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append sampled tokens, where there are no stop strings."""
        table = self._table
        self._data += b"".join(table[i] or b"" for i in token_ids if i < len(table))

    def push(self, token_id: int) -> str | None:
        """Append one sampled token. Not to be called again after a stop string was returned.

        Returns:
            The stop string that ends the text with this token; None while there is none.
        """
        data, stops = self._data, self._stops
        old_length = len(data)
        if token_id < len(self._table):
            data += self._table[token_id] or b""
        if stops is None:
            return None
        if self._ignored_tokens > 0:
            self._ignored_tokens -= 1
            return None
        # A match ends in the new bytes, so it begins at most one byte less than a stop string before them.
        if stops.search(data, old_length - stops.reach if old_length > stops.reach else 0) is None:
            return None
        return self._cut(stops, old_length)

    def _cut(self, stops: _Stops, old_length: int) -> str | None:
        matches = []
        for pattern, stop in stops.patterns:
            start = self._data.find(pattern, max(0, old_length - len(pattern) + 1))
            if start >= 0:
                matches.append((start + len(pattern), start, stop))
        if not matches:
            return None
        end, start, stop = min(matches)
        self._end = end if self._include else start
        return stop

    def text(self) -> str:
        """The text so far, cut at the stop string; bytes that are not UTF-8 become U+FFFD."""
        return self._data[: self._end].decode("utf-8", errors="replace")


class _Stops(NamedTuple):
    patterns: list[tuple[bytes, str]]
    reach: int  # one less than the longest
    search: Callable[[bytearray, int], object]  # a match of any of them; None: there is none


@lru_cache(maxsize=256)
def _compile(stop_strings: tuple[str, ...]) -> _Stops:
    patterns = [(stop.encode("utf-8"), stop) for stop in stop_strings]
    # One search for all is several times faster than one for each, and nearly all tokens end here.
    search = re.compile(b"|".join(re.escape(pattern) for pattern, _ in patterns)).search
    return _Stops(patterns, max(len(pattern) for pattern, _ in patterns) - 1, search)
