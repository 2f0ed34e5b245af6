"""Sequences → tensors for one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.rows import Rows
from .request import Request
from .scheduler import PlannedRow
from .sequence import Sequence


class ScoredToken(NamedTuple):
    """A token whose log-probability somebody wants: one of the prompt, or one that might follow it."""

    sequence: Sequence
    packed_index: int
    """Of the token before it, whose hidden state predicts it."""
    target: int
    num_alternatives: int | None


@dataclass(frozen=True)
class StepInput:
    """One step's tensors.

    Args:
        token_ids: [M] int64.
        sampled: the sequences that get a token, with the packed index of the hidden state it is sampled from.
        scored: tokens to score; those that one hidden state predicts follow each other.
    """

    token_ids: Tensor
    rows: Rows
    sampled: list[tuple[Sequence, int]]
    scored: list[ScoredToken]


def build(plan: list[PlannedRow], device: torch.device) -> StepInput:
    """Pack a plan's tokens; one copy to the device."""
    token_ids: list[int] = []
    sampled: list[tuple[Sequence, int]] = []
    scored: list[ScoredToken] = []
    for sequence, num_tokens in plan:
        start = len(token_ids)
        token_ids += sequence.chunk(num_tokens)
        request = sequence.request
        if request is None:
            continue
        if not sequence.is_decoding:
            scored += _scored(sequence, request, start, num_tokens)
        if num_tokens >= sequence.num_uncomputed and request.params.max_tokens > 0:
            sampled.append((sequence, start + num_tokens - 1))
    rows = Rows(tuple(row.sequence.slot for row in plan), tuple(row.num_tokens for row in plan), device)
    return StepInput(torch.tensor(token_ids, dtype=torch.int64, device=device), rows, sampled, scored)


def _scored(sequence: Sequence, request: Request, start: int, num_tokens: int) -> list[ScoredToken]:
    prompt, done, params = sequence.prompt, sequence.num_computed, request.params
    last = len(prompt) - 1
    found: list[ScoredToken] = []
    if request.score_start is not None:
        positions = range(max(done, request.score_start - 1), min(done + num_tokens, last))
        found = [ScoredToken(sequence, start + p - done, prompt[p + 1], params.prompt_logprobs) for p in positions]
    if done + num_tokens > last:
        ids = request.next_token_ids
        found += [ScoredToken(sequence, start + last - done, token_id, params.logprobs) for token_id in ids]
    return found
