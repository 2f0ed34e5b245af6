"""A table of the most likely tokens at each position of running completions."""

from __future__ import annotations

import numpy as np

from .token_scores import TokenScores, TopTokens


class TopTable:
    """The ranks and the K most likely tokens of completions of any length, all with the same K.

    Each completion has a place. Places, and their length, grow by doubling.
    """

    def __init__(self) -> None:
        self._ranks = np.zeros((0, 0), np.int64)
        self._ids = np.zeros((0, 0, 0), np.int32)
        self._logprobs = np.zeros((0, 0, 0))
        self._free: list[int] = []

    @property
    def is_empty(self) -> bool:
        """Whether no place is in use."""
        return len(self._free) == len(self._ranks)

    def open(self) -> int:
        """Takes a place for one completion."""
        if not self._free:
            count = len(self._ranks)
            self._resize(max(2 * count, 1), *self._ids.shape[1:])
            self._free = list(range(count, len(self._ranks)))
        return self._free.pop()

    def write(self, places: np.ndarray, token_index: np.ndarray, top: TopTokens) -> None:
        """Writes the entries of one token for each of n places; n is at least 1.

        Args:
            token_index: [n] int64, each token's index in its completion.
            top: the entries of the n tokens; K is the same in every call.
        """
        length, old_length = int(token_index.max()) + 1, self._ids.shape[1]
        if length > old_length:
            self._resize(len(self._ranks), max(2 * old_length, length, 16), top.ids.shape[1])
        self._ranks[places, token_index] = top.ranks
        self._ids[places, token_index] = top.ids
        self._logprobs[places, token_index] = top.logprobs

    def close(self, place: int, logprobs: np.ndarray) -> TokenScores:
        """Frees a place, and returns its entries for the n tokens of the completion.

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
