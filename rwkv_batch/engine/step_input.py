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
    """A prompt token whose log-probability somebody wants."""

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
        scored: prompt tokens to score.
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
        work = sequence.work
        if not isinstance(work, Request):
            continue
        if work.score_start is not None and not sequence.is_decoding:
            scored += _scored(sequence, work, start, num_tokens)
        if num_tokens >= sequence.num_uncomputed and work.params.max_tokens > 0:
            sampled.append((sequence, start + num_tokens - 1))
    rows = Rows(tuple(row.sequence.slot for row in plan), tuple(row.num_tokens for row in plan), device)
    return StepInput(torch.tensor(token_ids, dtype=torch.int64, device=device), rows, sampled, scored)


def _scored(sequence: Sequence, work: Request, start: int, num_tokens: int) -> list[ScoredToken]:
    assert work.score_start is not None
    prompt, done = sequence.prompt, sequence.num_computed
    first = max(done, work.score_start - 1)
    last = min(done + num_tokens, len(prompt) - 1)
    count = work.params.prompt_logprobs
    return [ScoredToken(sequence, start + p - done, prompt[p + 1], count) for p in range(first, last)]
