"""Stop strings in the texts of all running sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detokenizer import Detokenizer
from .engine.request import StopMatch


@dataclass(frozen=True)
class StopStrings:
    """What ends a text."""

    strings: tuple[str, ...]
    include_in_output: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for string in self.strings:
            string.encode()


class StopMatcher:
    """Looks for stop strings in the texts of all slots."""

    def __init__(self, token_bytes: Sequence[bytes | None], num_slots: int) -> None:
        self._token_bytes = token_bytes
        self._texts: list[Detokenizer | None] = [None] * num_slots

    def start(self, slot: int, stop_strings: StopStrings) -> None:
        """A new text begins in this slot."""
        self._texts[slot] = Detokenizer(
            self._token_bytes, stop_strings.strings, stop_strings.include_in_output, stop_strings.min_tokens
        )

    def push(self, slots: np.ndarray, token_ids: np.ndarray) -> list[StopMatch]:
        """One token for each of n slots."""
        found = []
        for index, (slot, token_id) in enumerate(zip(slots.tolist(), token_ids.tolist(), strict=True)):
            text = self._texts[slot]
            assert text is not None
            stop = text.push(token_id)
            if stop is not None:
                found.append(StopMatch(index, stop, len(text._data[: text._end])))
        return found
