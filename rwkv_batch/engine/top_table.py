"""The most likely tokens at each position of running completions, kept by the slots that ask for them."""

from __future__ import annotations

import numpy as np

from .logprobs import TokenScores, TopTokens


class TopTable:
    """Room for n completions of any length, all of which ask for the same number of tokens at each position.

    A place holds, for each token, its rank and the K most likely tokens.
    """

    def __init__(self) -> None:
        self._ranks = np.zeros((0, 0), np.int64)
        self._ids = np.zeros((0, 0, 0), np.int32)
        self._logprobs = np.zeros((0, 0, 0))
        self._free: list[int] = []

    @property
    def is_empty(self) -> bool:
        """No place is in use."""
        return len(self._free) == len(self._ranks)

    def open(self) -> int:
        """A place for one completion."""
        if not self._free:
            count = len(self._ranks)
            self._resize(max(2 * count, 1), *self._ids.shape[1:])
            self._free = list(range(count, len(self._ranks)))
        return self._free.pop()

    def write(self, places: np.ndarray, numbers: np.ndarray, top: TopTokens) -> None:
        """One token for each of n places.

        Args:
            numbers: [n] int64, each token's index in its completion.
            top: of the n tokens; always of the same K.
        """
        length, old_length = int(numbers.max(initial=-1)) + 1, self._ids.shape[1]
        if length > old_length:
            self._resize(len(self._ranks), max(2 * old_length, length, 16), top.ids.shape[1])
        self._ranks[places, numbers] = top.ranks
        self._ids[places, numbers] = top.ids
        self._logprobs[places, numbers] = top.logprobs

    def close(self, place: int, logprobs: np.ndarray) -> TokenScores:
        """What a place holds for the first tokens of a completion; the place is free again.

        Args:
            logprobs: [n] float64, of the completion's tokens.
        """
        self._free.append(place)
        ranks, ids, top = (table[place, : len(logprobs)].copy() for table in (self._ranks, self._ids, self._logprobs))
        return TokenScores(logprobs, ranks == 1, TopTokens(ranks, ids, top))

    def _resize(self, num_places: int, length: int, count: int) -> None:
        for name, shape in (
            ("_ranks", (num_places, length)),
            ("_ids", (num_places, length, count)),
            ("_logprobs", (num_places, length, count)),
        ):
            old = getattr(self, name)
            new = np.zeros(shape, old.dtype)
            new[tuple(slice(size) for size in old.shape)] = old
            setattr(self, name, new)
