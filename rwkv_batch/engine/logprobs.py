"""The most likely tokens at the positions of tokens, and their log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

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


class TopTensors(NamedTuple):
    """The scores of n tokens with the K most likely tokens of each one's row, on the device."""

    logprobs: Tensor
    """[n] float64, of the n tokens."""
    ranks: Tensor
    """[n] int64."""
    top_ids: Tensor
    """[n, K] int32."""
    top_logprobs: Tensor
    """[n, K] float64."""

    @classmethod
    def of(
        cls, logits: Tensor, rows: Tensor, logprobs: Tensor, token_ids: Tensor, count: int, ops: OpTable
    ) -> TopTensors:
        """Finds the most likely tokens.

        Args:
            logits: [B, V] float32.
            rows: [n] int64, the tokens' rows of the logits.
            logprobs: [n] float64, those of `token_ids` [n].
            count: K, at least 0; more than V means V.
            ops: implementations of `TOP_TOKENS`.
        """
        rank, top_ids = ops.top_tokens(logits, rows, token_ids, min(count, logits.shape[1]))
        # logprob = logit - normalizer, and a row's tokens share the normalizer: differences of logits are enough.
        own, top = logits[rows, token_ids].double(), logits[rows[:, None], top_ids].double()
        return cls(logprobs, rank, top_ids.int(), top - own[:, None] + logprobs[:, None])


class TopLogprobs:
    """The scores of tokens with the most likely tokens of each one's row, with their copies to the host in flight.

    Args:
        tensors: of n tokens or more; the others are padding.
        num_tokens: n; None for all.
        count: how many of the most likely tokens are wanted; None for all.
    """

    def __init__(self, tensors: TopTensors, num_tokens: int | None = None, count: int | None = None) -> None:
        self._copies = [HostCopy(tensor[:num_tokens]) for tensor in tensors]
        self._count = count

    def read(self) -> TokenScores:
        """Waits for the copies, and returns the scores."""
        logprobs, ranks, top_ids, top_logprobs = (copy.read().numpy() for copy in self._copies)
        top = TopTokens(ranks, top_ids[:, : self._count], top_logprobs[:, : self._count])
        return TokenScores(logprobs, ranks == 1, top)
