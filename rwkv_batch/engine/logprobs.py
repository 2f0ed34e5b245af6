"""The most likely tokens at the positions of tokens, and their log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import OpSpec, OpTable
from ..transfer import HostCopy
from .selection import sort_key
from .token_scores import TokenScores, TopTokens


def top_tokens(logits: Tensor, rows: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ranks of tokens in their rows, and each row's most likely tokens. Of equal logits the lowest id comes first.

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
    """The scores of `token_ids` [n] with the K most likely tokens of each row, with their copies to the host in flight.

    Args:
        logits: [B, V] float32.
        rows: [n] int64, the tokens' rows of the logits.
        logprobs: [n] float64, those of `token_ids`.
        count: K, at least 0; more than V means V.
        ops: implementations of `TOP_TOKENS`.
    """

    def __init__(
        self, logits: Tensor, rows: Tensor, logprobs: Tensor, token_ids: Tensor, count: int, ops: OpTable
    ) -> None:
        rank, top_ids = ops.top_tokens(logits, rows, token_ids, min(count, logits.shape[1]))
        # logprob = logit - normalizer, and a row's tokens share the normalizer: differences of logits are enough.
        own, top = logits[rows, token_ids].double(), logits[rows[:, None], top_ids].double()
        self._copies = [
            HostCopy(tensor) for tensor in (logprobs, rank, top_ids.int(), top - own[:, None] + logprobs[:, None])
        ]

    def read(self) -> TokenScores:
        """Waits for the copies, and returns the scores."""
        logprobs, ranks, top_ids, top_logprobs = (copy.read().numpy() for copy in self._copies)
        return TokenScores(logprobs, ranks == 1, TopTokens(ranks, top_ids, top_logprobs))
