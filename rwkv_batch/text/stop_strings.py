"""Stop strings: found in the text of running sequences, token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..cpu_kernels.build import unavailable
from ..cpu_kernels.text import Automaton, StopPusher, TokenTable
from ..engine.request import StopMatch


@dataclass(frozen=True)
class StopStrings:
    """The strings that end a text. Immutable and hashable; equal settings are equal objects.

    Stop strings are matched in bytes, so that the division of a text into tokens makes no difference. Of several
    matches, the one that ends first counts; of those with the same end, the longest.

    Args:
        strings: strings of at least one character.
        include_in_output: cut the text after the stop string, not before it.
        min_tokens: a stop string that ends within the first `min_tokens` tokens is ordinary text. A stop string that
            begins there and ends later counts.

    Raises:
        ValueError: a string is empty.
        UnicodeEncodeError: (a ValueError) a string has a lone surrogate.
    """

    strings: tuple[str, ...]
    include_in_output: bool = False
    min_tokens: int = 0
    patterns: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    """The strings in UTF-8."""

    def __post_init__(self) -> None:
        if not all(self.strings):
            raise ValueError(f"stop strings: got {self.strings!r}, expected strings of at least one character")
        object.__setattr__(self, "patterns", tuple(string.encode("utf-8") for string in self.strings))

    @cached_property
    def automaton(self) -> Automaton:
        """The automaton that native code finds the strings with."""
        return Automaton(self.patterns)

    @cached_property
    def expression(self) -> re.Pattern[bytes]:
        """The regular expression that matches any of the strings, for machines without native code."""
        return re.compile(b"|".join(map(re.escape, self.patterns)))


class StopMatcher:
    """Finds stop strings in the texts of all slots of an engine, each with its own stop strings.

    Native code matches on a machine with a compiler, Python on others. Their results are equal.

    Args:
        token_bytes: bytes by id. None stands for an id without bytes; ids beyond the end have none.
        num_slots: P; slots are 0 to P - 1.
    """

    def __init__(self, token_bytes: Sequence[bytes | None], num_slots: int) -> None:
        self._stop_strings: list[StopStrings | None] = [None] * num_slots
        self._native = None if unavailable() else StopPusher(TokenTable(token_bytes), num_slots)
        self._token_bytes = token_bytes
        self._texts: list[_WatchedText | None] = [None] * num_slots  # used without native code only

    def start(self, slot: int, stop_strings: StopStrings) -> None:
        """Start a new, empty text in `slot`, in place of the text that was there."""
        self._stop_strings[slot] = stop_strings
        if self._native is not None:
            self._native.start(slot, stop_strings.automaton, stop_strings.min_tokens)
        else:
            self._texts[slot] = _WatchedText(stop_strings)

    def push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[StopMatch]:
        """Append token_ids[i] to the text of slots[i].

        Tokens of a slot without a text are ignored, and so are tokens after the stop string that has ended a text.

        Args:
            slots: [n] integers, n <= P, all different.
            token_ids: [n] integers.

        Returns:
            The stop strings that these tokens complete, in the order of the tokens.

        Raises:
            IndexError: a slot does not exist.
        """
        found = self._native.push(slots, token_ids) if self._native is not None else self._push(slots, token_ids)
        return [self._match(int(slots[index]), index, pattern, end) for index, pattern, end in found]

    def _match(self, slot: int, index: int, pattern: int, end: int) -> StopMatch:
        stop = self._stop_strings[slot]
        assert stop is not None
        text_bytes = end if stop.include_in_output else end - len(stop.patterns[pattern])
        return StopMatch(index, stop.strings[pattern], text_bytes)

    def _push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[tuple[int, int, int]]:
        if len(slots) and not 0 <= min(slots) <= max(slots) < len(self._texts):
            raise IndexError(f"slots: got {min(slots)} to {max(slots)}, expected 0 to {len(self._texts) - 1}")
        matches = []
        for index, (slot, token_id) in enumerate(zip(slots.tolist(), token_ids.tolist(), strict=True)):
            text = self._texts[slot]
            if text is None:
                continue
            token = self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else None
            match = text.push(token or b"")
            if match is not None:
                matches.append((index, *match))
                self._texts[slot] = None
        return matches


class _WatchedText:
    """A text, and the search for its stop strings in Python."""

    def __init__(self, stop: StopStrings) -> None:
        self._patterns = stop.patterns
        self._reach = max(map(len, stop.patterns), default=1) - 1
        # A single search for all strings is several times faster than a search for each. Nearly all tokens match none.
        self._search = stop.expression.search if stop.patterns else None
        self._ignored_tokens = stop.min_tokens
        self._data = bytearray()

    def push(self, token: bytes) -> tuple[int, int] | None:
        """Append a token. Returns the number of the pattern that ends the text, and where the match ends; or None."""
        data, old_length = self._data, len(self._data)
        data += token
        if self._ignored_tokens > 0:
            self._ignored_tokens -= 1
            return None
        # A match ends in the new bytes. It begins at most the length of a stop string, less one byte, before them.
        if self._search is None or self._search(data, max(0, old_length - self._reach)) is None:
            return None
        matches = []
        for number, pattern in enumerate(self._patterns):
            start = data.find(pattern, max(0, old_length - len(pattern) + 1))
            if start >= 0:
                matches.append((start + len(pattern), start, number))
        if not matches:
            return None
        end, _, number = min(matches)
        return number, end
