"""A token's log-probability and the most likely tokens beside it, under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
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


def top_tokens(logits: Tensor, rows: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where tokens rank in their rows, and the most likely tokens there. Of equal logits the lowest id comes first.

    Args:
        logits: [B, V] float32.
        rows, token_ids: [n] int64: n tokens, and the rows of the logits that they belong to.
        count: K, from 0 to V.

    Returns:
        Ranks [n] int64, 1 for the most likely token; and the ids of the K most likely tokens [n, K] int64.
    """
    logits = logits[rows]
    own = logits.gather(1, token_ids[:, None])
    position = torch.arange(logits.shape[1], device=logits.device)
    rank = 1 + ((logits > own) | ((logits == own) & (position < token_ids[:, None]))).sum(1)
    return rank, sort_key(logits, position).topk(count, dim=1).indices


TOP_TOKENS = OpSpec("top_tokens", top_tokens, optional=True, is_recorded=False)


class TopLogprobs:
    """Log-probabilities of `token_ids` [n], each with the `counts[i]` most likely tokens of its row, on their way.

    Args:
        logits: [B, V] float32.
        rows: [n] int64, the tokens' rows of the logits.
        logprobs: [n] float64, those of `token_ids`.
        ops: implementations of `TOP_TOKENS`.
    """

    def __init__(
        self,
        logits: Tensor,
        rows: Tensor,
        logprobs: Tensor,
        token_ids: Tensor,
        counts: Sequence[int],
        ops: OpTable,
    ) -> None:
        rank, top_ids = ops.top_tokens(logits, rows, token_ids, min(max(counts), logits.shape[1]))
        # The normaliser is the same for all tokens of a row.
        own, top = logits[rows, token_ids].double(), logits[rows[:, None], top_ids].double()
        self._counts = counts
        self._copies = [
            HostCopy(tensor) for tensor in (logprobs, rank, top_ids, top - own[:, None] + logprobs[:, None])
        ]

    def read(self) -> list[Logprobs]:
        """One for each row; waits for them."""
        columns = (*(copy.read().tolist() for copy in self._copies), self._counts)
        return [
            Logprobs(logprob, rank == 1, rank, ids[:count], values[:count])
            for logprob, rank, ids, values, count in zip(*columns, strict=True)
        ]
