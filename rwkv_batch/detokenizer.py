"""The text of one running sequence, byte by byte, and the stop string that ends it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple


class Detokenizer:
    """Collects the bytes of sampled tokens, and cuts the text at a stop string.

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

    __slots__ = ("_data", "_decoder", "_end", "_ignored_tokens", "_include", "_sent", "_stops", "_table")

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
        self._sent = 0  # bytes that `delta` has handed to its decoder
        self._decoder: codecs.IncrementalDecoder | None = None

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

    def delta(self, final: bool = False) -> str:
        """The text since the last call. All deltas up to a final one together are `text()`.

        Held back until they are decided, unless `final` or stopped: an incomplete UTF-8 sequence, and bytes that may
        be the beginning of a stop string which is to be cut off.
        """
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        final = final or self._end is not None
        end = len(self._data) if self._end is None else self._end
        if not final and not self._include:
            end -= self._undecided()
        new = bytes(self._data[self._sent : end])
        self._sent = end
        return self._decoder.decode(new, final)

    def _undecided(self) -> int:
        """Length of the longest end of the data with which a stop string may begin."""
        if self._stops is None:
            return 0
        for length in range(min(self._stops.reach, len(self._data)), 0, -1):
            tail = self._data[-length:]
            if any(len(pattern) > length and pattern.startswith(tail) for pattern, _ in self._stops.patterns):
                return length
        return 0


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
