"""A plan → tensors for one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.rows import Rows
from ..models.upload import upload
from .request import Request
from .scheduler import Chunk, Plan
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
        sampled_slots: [n] int64: slots of the rows that get a token, decode rows first.
        sampled_index: [n] int64: packed index of the hidden state that each is sampled from.
        scored: tokens to score, in the order of their packed indices.
    """

    token_ids: Tensor
    rows: Rows
    sampled_slots: np.ndarray
    sampled_index: np.ndarray
    scored: list[ScoredToken]


def build(plan: Plan, position: np.ndarray, last_token: Tensor) -> StepInput:
    """Pack a plan's tokens: decode rows are fed what their slots sampled last, which only the device knows.

    Args:
        position: [P] of the scheduler.
        last_token: [P + 1] int64, of the slot tables.
    """
    device = last_token.device
    num_decoding = len(plan.decoding)
    prompt_ids: list[int] = []
    sampled: list[tuple[int, int]] = []
    scored: list[ScoredToken] = []
    for chunk in plan.chunks:
        sequence, num_tokens = chunk
        start = num_decoding + len(prompt_ids)
        prompt_ids += sequence.chunk(num_tokens)
        if sequence.request is not None:
            scored += _scored(chunk, sequence.request, start)
        if num_tokens == sequence.num_uncomputed and sequence.max_tokens:
            sampled.append((sequence.slot, start + num_tokens - 1))
    slots = np.concatenate((plan.decoding, np.array([chunk.sequence.slot for chunk in plan.chunks], np.int64)))
    lengths = [1] * num_decoding + [chunk.num_tokens for chunk in plan.chunks]
    rows = Rows(tuple(slots.tolist()), tuple(lengths), device, tuple(position[slots].tolist()))
    ends = np.array(sampled, np.int64).reshape(-1, 2)
    token_ids = upload(prompt_ids, torch.int64, device)
    if num_decoding:
        token_ids = torch.cat((last_token[rows.slot_index[:num_decoding].long()], token_ids))
    return StepInput(
        token_ids,
        rows,
        sampled_slots=np.concatenate((plan.decoding, ends[:, 0])),
        sampled_index=np.concatenate((np.arange(num_decoding), ends[:, 1])),
        scored=scored,
    )


def _scored(chunk: Chunk, request: Request, start: int) -> list[ScoredToken]:
    sequence, num_tokens = chunk
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
