"""Log-probabilities of tokens, in arrays of numpy: this imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Logprobs(NamedTuple):
    """The log-probability of one token, and the most likely tokens at its position."""

    logprob: float
    is_greedy: bool
    """Whether the token is the most likely one (of equal logits, the lowest id)."""
    rank: int
    """1 for the most likely token; 0 if no alternatives were asked for."""
    top_ids: list[int]
    top_logprobs: list[float]


class TopTokens(NamedTuple):
    """The ranks of n tokens at their positions, and the K most likely tokens of each position."""

    ranks: np.ndarray
    """[n] int64; 1 for the most likely token."""
    ids: np.ndarray
    """[n, K] int32, most likely first."""
    logprobs: np.ndarray
    """[n, K] float64."""

    def part(self, rows: slice | np.ndarray, count: int | None) -> TopTokens:
        """The entries of some of the n tokens, with the `count` most likely tokens of each; None: all K."""
        return TopTokens(self.ranks[rows], self.ids[rows, :count], self.logprobs[rows, :count])


@dataclass(slots=True, eq=False)
class TokenScores:
    """The fields of `Logprobs` for n tokens, in arrays. Indexing and iterating give `Logprobs`.

    Attributes:
        logprobs: [n] float64.
        is_greedy: [n] bool.
        top: None if no alternatives were asked for.
    """

    logprobs: np.ndarray
    is_greedy: np.ndarray
    top: TopTokens | None = None

    @classmethod
    def join(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """Concatenates scores that all have the same K. No parts give the scores of no tokens."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(np.zeros(0), np.zeros(0, bool))
        tops = [part.top for part in parts if part.top is not None]
        return cls(
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.is_greedy for part in parts]),
            TopTokens(*map(np.concatenate, zip(*tops, strict=True))) if tops else None,
        )

    @property
    def num_alternatives(self) -> int:
        """K."""
        return 0 if self.top is None else self.top.ids.shape[1]

    def __len__(self) -> int:
        return len(self.logprobs)

    def __getitem__(self, index: int) -> Logprobs:
        return next(iter(self.part(np.array([index]))))

    def __iter__(self) -> Iterator[Logprobs]:
        pairs = zip(self.logprobs.tolist(), self.is_greedy.tolist(), strict=True)
        if self.top is None:
            return (Logprobs(logprob, is_greedy, 0, [], []) for logprob, is_greedy in pairs)
        tops = zip(*(column.tolist() for column in self.top), strict=True)
        return (Logprobs(*pair, *top) for pair, top in zip(pairs, tops, strict=True))

    def copy(self) -> TokenScores:
        """A copy that shares no memory with this one."""
        top = None if self.top is None else TopTokens(*(column.copy() for column in self.top))
        return TokenScores(self.logprobs.copy(), self.is_greedy.copy(), top)

    def part(self, rows: slice | np.ndarray, count: int | None = None) -> TokenScores:
        """The scores of some of the n tokens, with the `count` most likely tokens of each; None: all K."""
        top = None if self.top is None else self.top.part(rows, count)
        return TokenScores(self.logprobs[rows], self.is_greedy[rows], top)
