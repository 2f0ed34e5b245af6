"""A plan → tensors for one step, sent to the device in one transfer."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.rows import Rows, RowTensors
from ..transfer import Uploader
from .scheduler import Scheduler, StepPlan
from .sequence import Sequence


class ScoredTokens(NamedTuple):
    """Tokens of one sequence whose log-probabilities somebody wants, predicted in one step."""

    slot: int
    are_next: bool
    """They are `next_token_ids`, not tokens of the prompt."""
    packed_index: int
    """Of the token before the first one, whose hidden state predicts it. Tokens of a prompt are predicted by hidden
    states that follow one another, `next_token_ids` all by this one."""
    targets: SequenceOf[int] | np.ndarray
    """[n]."""
    num_alternatives: int | None
    """Most likely tokens to return beside each; None for none, and no ranks."""


class ScoreInput(NamedTuple):
    """All tokens that a step scores, n of them, in the order of their packed indices."""

    parts: list[ScoredTokens]
    hidden_index: Tensor
    """[m] int64: packed indices of the hidden states that predict them, each once."""
    rows: Tensor
    """[n] int64, ascending: which of the m hidden states predicts each."""
    targets: Tensor
    """[n] int64."""
    asking: Tensor
    """[k] int64: those of the n tokens that ask for alternatives."""


class StepInput(NamedTuple):
    """One step's tensors."""

    token_ids: Tensor
    """[M] int64."""
    rows: Rows
    sampled_slots: np.ndarray
    """[n] int64: slots of the rows that get a token, decode rows first."""
    slot_index: Tensor
    """[n] int32: the same on the device."""
    sampled_index: Tensor | None
    """[n] int64: packed index of the hidden state that each is sampled from; None where these are all, in order."""
    top_rows: np.ndarray
    """[m] int64: those of the n rows that ask for the most likely tokens."""
    top_index: Tensor
    """[m] int64: the same on the device."""
    scored: ScoreInput | None


class _Chunk(NamedTuple):
    sequence: Sequence
    done: int
    """Prompt tokens before the chunk."""
    end: int
    """Prompt tokens up to the end of the chunk."""
    start: int
    """Packed index of the chunk's first token."""


def build(
    plan: StepPlan, scheduler: Scheduler, last_token: Tensor, uploader: Uploader, asks_top: np.ndarray
) -> StepInput:
    """Pack a plan's tokens. Decode rows are fed what their slots sampled last, which only the device knows.

    Args:
        last_token: [P + 1] int64, of the slot tables.
        asks_top: [P] bool: slots that ask for the most likely tokens.
    """
    num_decoding = len(plan.decoding)
    slots = np.concatenate((plan.decoding, plan.prefilling))
    positions = scheduler.position[slots]
    lengths = np.ones(len(slots), np.int64)
    lengths[num_decoding:] = plan.chunk_sizes
    chunks = _chunks(plan, scheduler)
    prompt_ids = _joined([chunk.sequence.prompt[chunk.done : chunk.end] for chunk in chunks])
    ends = np.cumsum(lengths) - 1
    asks = positions + lengths >= scheduler.prompt_length[slots]  # the prompt is complete with this step
    sampled = np.flatnonzero(asks & (scheduler.max_tokens[slots] > 0))
    sampled_slots = slots[sampled]
    top_rows = np.flatnonzero(asks_top[sampled_slots])
    parts = [part for chunk in chunks for part in _scored(chunk)]
    scores = _joined_scores(parts)
    arrays = Rows.arrays(slots, lengths, positions)
    sent = uploader.send(
        *arrays,
        prompt_ids,
        sampled_slots.astype(np.int32),
        ends[sampled],
        top_rows,
        *scores,
    )
    tensors = RowTensors(*sent[:4])
    prompt_tokens, slot_index, sampled_index, top_index = sent[4:8]
    token_ids = prompt_tokens.long()
    if num_decoding:
        token_ids = torch.cat((last_token[tensors.slot_index[:num_decoding].long()], token_ids))
    return StepInput(
        token_ids,
        Rows(slots, lengths, uploader.device, positions, tensors),
        sampled_slots,
        slot_index,
        sampled_index if len(sampled) < len(token_ids) else None,
        top_rows,
        top_index,
        ScoreInput(parts, *sent[8:]) if parts else None,
    )


def _chunks(plan: StepPlan, scheduler: Scheduler) -> list[_Chunk]:
    starts = len(plan.decoding) + np.cumsum(plan.chunk_sizes) - plan.chunk_sizes
    done = scheduler.position[plan.prefilling]
    columns = (each.tolist() for each in (plan.prefilling, done, done + plan.chunk_sizes, starts))
    return [_Chunk(scheduler.sequence(slot), *numbers) for slot, *numbers in zip(*columns, strict=True)]


def _scored(chunk: _Chunk) -> SequenceOf[ScoredTokens]:
    sequence, done, end, start = chunk
    request = sequence.request
    if request is None or (request.score_start is None and not request.next_token_ids):
        return ()
    last, params = len(sequence.prompt) - 1, request.params
    found = []
    if request.score_start is not None:
        first = max(done, request.score_start - 1)
        if first < min(end, last):
            targets = sequence.prompt[first + 1 : min(end, last) + 1]
            found.append(ScoredTokens(sequence.slot, False, start + first - done, targets, params.prompt_logprobs))
    if request.next_token_ids and end > last:
        index = start + last - done
        found.append(ScoredTokens(sequence.slot, True, index, request.next_token_ids, params.logprobs))
    return found


def _joined_scores(parts: list[ScoredTokens]) -> tuple[np.ndarray, ...]:
    """The numbers of `ScoreInput`, on the host."""
    if not parts:
        return _NONE, _NONE, _NONE, _NONE
    counts = np.array([len(part.targets) for part in parts])
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of each token in its part
    advances = np.repeat([not part.are_next for part in parts], counts)
    packed_index = np.repeat([part.packed_index for part in parts], counts) + numbers * advances
    is_new = np.diff(packed_index, prepend=-1) > 0  # ascending, as the packed tokens are
    targets = np.fromiter(chain.from_iterable(_listed(part.targets) for part in parts), np.int64, len(numbers))
    asking = np.repeat([part.num_alternatives is not None for part in parts], counts)
    return packed_index[is_new], np.cumsum(is_new) - 1, targets, np.flatnonzero(asking)


def _listed(targets: SequenceOf[int] | np.ndarray) -> SequenceOf[int]:
    return targets.tolist() if isinstance(targets, np.ndarray) else targets


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)


_NONE = np.zeros(0, np.int64)
