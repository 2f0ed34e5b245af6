"""A token's log-probability and the most likely tokens beside it, under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .host_copy import HostCopy
from .selection import sort_key


class Logprobs(NamedTuple):
    """One token at one position, and the most likely tokens there."""

    logprob: float
    is_greedy: bool
    """The token is the most likely one (the first of those with the largest logit)."""
    rank: int
    """1 is the most likely token; 0 where no alternatives were asked for."""
    top_ids: list[int]
    top_logprobs: list[float]


class TopLogprobs:
    """Log-probabilities of `token_ids` [B], each with the `counts[i]` most likely tokens of its row, on their way.

    Of equal logits the one with the lowest id comes first, in the ranks as in the order.

    Args:
        logits: [B, V] float32.
        logprobs: [B] float64, those of `token_ids`.
    """

    def __init__(self, logits: Tensor, logprobs: Tensor, token_ids: Tensor, counts: Sequence[int]) -> None:
        own = logits.gather(1, token_ids[:, None])
        position = torch.arange(logits.shape[1], device=logits.device)
        rank = 1 + ((logits > own) | ((logits == own) & (position < token_ids[:, None]))).sum(1)
        top_ids = sort_key(logits, position).topk(min(max(counts), logits.shape[1]), dim=1).indices
        # The normaliser is the same for all tokens of a row.
        top = logits.gather(1, top_ids).double() - own.double() + logprobs[:, None]
        self._counts = counts
        self._copies = [HostCopy(tensor) for tensor in (logprobs, rank, top_ids, top)]

    def read(self) -> list[Logprobs]:
        """One for each row; waits for them."""
        columns = (*(copy.read().tolist() for copy in self._copies), self._counts)
        return [
            Logprobs(logprob, rank == 1, rank, ids[:count], values[:count])
            for logprob, rank, ids, values, count in zip(*columns, strict=True)
        ]
