"""Log-probabilities under the model's own distribution, without ever holding [tokens, V] for all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .selection import sort_key

ROWS_AT_ONCE = 64
"""Positions whose logits exist at the same time while scoring."""


class Logprobs(NamedTuple):
    """One token at one position, and the most likely tokens there."""

    logprob: float
    is_greedy: bool
    """The token is the most likely one (the first of those with the largest logit)."""
    rank: int
    """1 is the most likely token; 0 where no alternatives were asked for."""
    top_ids: list[int]
    top_logprobs: list[float]


def log_normalizer(logits: Tensor) -> Tensor:
    """log sum exp of each row: [B, V] float32 → [B] float64."""
    peak = logits.amax(1, keepdim=True)
    return peak[:, 0].double() + (logits - peak).exp_().sum(1).double().log()


def top_logprobs(logits: Tensor, normalizer: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Logprobs]:
    """Log-probabilities of `token_ids` [B], each with the `counts[i]` most likely tokens of its row.

    Of equal logits the one with the lowest id comes first, in the ranks as in the order.
    """
    own = logits.gather(1, token_ids[:, None])
    position = torch.arange(logits.shape[1], device=logits.device)
    rank = 1 + ((logits > own) | ((logits == own) & (position < token_ids[:, None]))).sum(1)
    top_ids = sort_key(logits, position).topk(min(max(counts), logits.shape[1]), dim=1).indices
    columns = (
        (own[:, 0].double() - normalizer).tolist(),
        rank.tolist(),
        top_ids.tolist(),
        (logits.gather(1, top_ids).double() - normalizer[:, None]).tolist(),
        counts,
    )
    return [
        Logprobs(logprob, rank == 1, rank, ids[:count], values[:count])
        for logprob, rank, ids, values, count in zip(*columns, strict=True)
    ]


def score(
    hidden: Tensor,
    positions: Sequence[int],
    targets: Sequence[int],
    counts: Sequence[int | None],
    head: Callable[[Tensor], Tensor],
) -> list[Logprobs]:
    """Score n targets. Those of one position follow each other, and share its logits.

    Args:
        hidden: [M, C], what the head turns into logits.
        positions: for each target the row of `hidden` that predicts it.
        targets: token ids.
        counts: for each target how many alternatives to return; None also leaves out the rank.
        head: [m, C] → [m, V] float32.
    """
    found: list[Logprobs] = []
    for start in range(0, len(targets), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows = list(dict.fromkeys(positions[part]))
        logits = head(hidden[rows])
        place = {position: row for row, position in enumerate(rows)}
        row_of = torch.tensor([place[position] for position in positions[part]], device=logits.device)
        ids = torch.tensor(targets[part], dtype=torch.int64, device=logits.device)
        normalizer = log_normalizer(logits)[row_of]
        if any(count is not None for count in counts[part]):
            found += top_logprobs(logits[row_of], normalizer, ids, [count or 0 for count in counts[part]])
            continue
        own = logits[row_of, ids].double() - normalizer
        greedy = logits.argmax(1)[row_of] == ids
        found += [Logprobs(p, g, 0, [], []) for p, g in zip(own.tolist(), greedy.tolist(), strict=True)]
    return found
