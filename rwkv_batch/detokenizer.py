"""The text of one running sequence, byte by byte, and the stop string that ends it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


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
        self._include = include_stop_str_in_output
        self._ignored_tokens = min_tokens
        # Longest first, so that the first of several matches with the same end is the one that counts.
        patterns = sorted(((stop.encode("utf-8"), stop) for stop in stop_strings), key=lambda stop: -len(stop[0]))
        self._stops = [(pattern, len(pattern), stop) for pattern, stop in patterns]
        self._data = bytearray()
        self._end: int | None = None  # where the text ends; None until a stop string is found
        self._sent = 0  # bytes that `delta` has handed to its decoder
        self._decoder: codecs.IncrementalDecoder | None = None

    def push(self, token_id: int) -> str | None:
        """Append one sampled token. Not to be called again after a stop string was returned.

        Returns:
            The stop string that ends the text with this token; None while there is none.
        """
        data = self._data
        old_length = len(data)
        if token_id < len(self._table):
            data += self._table[token_id] or b""
        if not self._stops:
            return None
        if self._ignored_tokens > 0:
            self._ignored_tokens -= 1
            return None
        found = None
        first_end = len(data) + 1
        for pattern, length, stop in self._stops:
            # A match must end in the new bytes.
            start = data.find(pattern, max(0, old_length - length + 1))
            if start >= 0 and start + length < first_end:
                first_end = start + length
                self._end = first_end if self._include else start
                found = stop
        return found

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
        longest = self._stops[0][1] if self._stops else 1
        for length in range(min(longest - 1, len(self._data)), 0, -1):
            tail = self._data[-length:]
            if any(pattern.startswith(tail) for pattern, _, _ in self._stops):
                return length
        return 0
