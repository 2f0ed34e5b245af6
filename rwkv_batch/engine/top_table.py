"""The most likely tokens at each position of running completions, kept by the slots that ask for them."""

from __future__ import annotations

import numpy as np

from .logprobs import TokenScores, TopTokens


class TopTable:
    """Room for n completions of any length. Completions that ask for nothing take no room.

    A place holds, for each token, its rank and the K most likely tokens; K is the largest that was asked for.
    """

    def __init__(self) -> None:
        self._ranks = np.zeros((0, 0), np.int64)
        self._ids = np.zeros((0, 0, 0), np.int32)
        self._logprobs = np.zeros((0, 0, 0))
        self._free: list[int] = []

    def open(self) -> int:
        """A place for one completion."""
        if not self._free:
            count = len(self._ranks)
            self._resize(max(2 * count, 8), self._ids.shape[1], self._ids.shape[2])
            self._free = list(range(count, len(self._ranks)))
        return self._free.pop()

    def write(self, places: np.ndarray, numbers: np.ndarray, top: TopTokens) -> None:
        """One token for each of n places.

        Args:
            numbers: [n] int64, each token's index in its completion.
            top: of the n tokens.
        """
        count = top.ids.shape[1]
        length = int(numbers.max(initial=-1)) + 1
        _, old_length, old_count = self._ids.shape
        if length > old_length or count > old_count:
            new_length = max(2 * old_length, length, 16) if length > old_length else old_length
            self._resize(len(self._ranks), new_length, max(count, old_count))
        self._ranks[places, numbers] = top.ranks
        self._ids[places, numbers, :count] = top.ids
        self._logprobs[places, numbers, :count] = top.logprobs

    def close(self, place: int, logprobs: np.ndarray, count: int) -> TokenScores:
        """What a place holds for the first tokens of a completion; the place is free again.

        Args:
            logprobs: [n] float64, of the completion's tokens.
            count: most likely tokens that the completion asks for; no more than V come out.
        """
        self._free.append(place)
        ranks = self._ranks[place, : len(logprobs)].copy()
        top = (table[place, : len(logprobs), :count].copy() for table in (self._ids, self._logprobs))
        return TokenScores(logprobs, ranks == 1, TopTokens(ranks, *top))

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
