"""Step input: packs the tokens of a plan, and makes the tensors of a step that is not recorded, in one transfer."""

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
    """Tokens of one sequence that are scored in one step."""

    slot: int
    are_next: bool
    """True: the tokens are `next_token_ids`; False: they are consecutive tokens of the prompt."""
    packed_index: int
    """Packed index of the hidden state that predicts the first token. Each further token of a prompt is predicted by
    the next hidden state; `next_token_ids` are all predicted by this one."""
    targets: SequenceOf[int] | np.ndarray
    """[n] token ids."""
    num_alternatives: int | None
    """Number of most likely tokens to return for each token; None: neither those nor ranks."""


class ScoreInput(NamedTuple):
    """All tokens that a step scores, n of them, in the order of their packed indices."""

    parts: list[ScoredTokens]
    hidden_index: Tensor
    """[m] int64: packed indices of the hidden states that predict the tokens, each once."""
    rows: Tensor
    """[n] int64, ascending: which of the m hidden states predicts each token."""
    targets: Tensor
    """[n] int64 token ids."""
    with_alternatives: Tensor
    """[k] int64: indices of those of the n tokens for which alternatives are returned."""


class PackedStep(NamedTuple):
    """The numbers of one step, on the host: first one token of each decode row, then the prompt chunks."""

    slots: np.ndarray
    """[B] int64."""
    lengths: np.ndarray
    """[B] int64: tokens of each row in this step, at least 1."""
    positions: np.ndarray
    """[B] int64: tokens of each row's sequence before this step."""
    deferred: np.ndarray
    """[B] int64: see `RowTensors`."""
    ends: np.ndarray
    """[B] int64: packed index after each row's last token."""
    prompt_ids: np.ndarray
    """Token ids of all prompt chunks. The tokens of decode rows, which come first, are known to the device only."""
    sampled: np.ndarray
    """[n] int64: those of the B rows that sample a token, decode rows first."""
    top_rows: np.ndarray
    """[m] int64: those of the n rows that return the most likely tokens."""
    scored: list[ScoredTokens]
    """The tokens that the step scores."""

    @property
    def num_tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def sampled_slots(self) -> np.ndarray:
        """[n] int64."""
        return self.slots[self.sampled]


class StepInput(NamedTuple):
    """The tensors of one step that is not recorded."""

    token_ids: Tensor
    """[M] int64."""
    rows: Rows
    slot_index: Tensor
    """[n] int32: slots of the rows that sample a token."""
    sampled_index: Tensor | None
    """[n] int64: packed index of the hidden state that each row samples from; None: all hidden states, in order."""
    top_index: Tensor
    """[m] int64: those of the n rows that return the most likely tokens."""
    scored: ScoreInput | None


class _Chunk(NamedTuple):
    """A prompt chunk of a step."""

    sequence: Sequence
    start: int
    """Index of the chunk's first token in the prompt."""
    end: int
    """Index after the chunk's last token in the prompt."""
    packed_start: int
    """Packed index of the chunk's first token in the step."""


def pack(plan: StepPlan, scheduler: Scheduler, returns_top: np.ndarray) -> PackedStep:
    """Packs the tokens of a plan.

    Args:
        returns_top: [P] bool: slots that return the most likely tokens.
    """
    slots = np.concatenate((plan.decoding, plan.prefilling))
    positions = scheduler.position[slots]
    lengths = np.ones(len(slots), np.int64)
    lengths[len(plan.decoding) :] = plan.chunk_sizes
    chunks = _chunks(plan, scheduler)
    is_prompt_read = positions + lengths >= scheduler.prompt_length[slots]  # with this step
    sampled = np.flatnonzero(is_prompt_read & (scheduler.max_tokens[slots] > 0))
    return PackedStep(
        slots,
        lengths,
        positions,
        scheduler.deferred(slots),
        np.cumsum(lengths),
        _joined([chunk.sequence.prompt[chunk.start : chunk.end] for chunk in chunks]),
        sampled,
        np.flatnonzero(returns_top[slots[sampled]]),
        [part for chunk in chunks for part in _scored(chunk)],
    )


def build(step: PackedStep, last_token: Tensor, uploader: Uploader) -> StepInput:
    """Sends the numbers of a step to the device.

    Decode rows are fed the tokens that their slots sampled last. Those are read from a table on the device, because the
    host may not know them yet.

    Args:
        last_token: [P + 1] int64, of the slot tables.
    """
    sent = uploader.send(
        *Rows.arrays(step.slots, step.lengths, step.positions, step.deferred),
        step.prompt_ids,
        step.sampled_slots.astype(np.int32),
        step.ends[step.sampled] - 1,
        step.top_rows,
        *_joined_scores(step.scored),
    )
    tensors = RowTensors(*sent[:5])
    prompt_tokens, slot_index, sampled_index, top_index = sent[5:9]
    token_ids = prompt_tokens.long()
    if num_decoding := step.num_tokens - len(token_ids):
        token_ids = torch.cat((last_token[tensors.slot_index[:num_decoding].long()], token_ids))
    return StepInput(
        token_ids,
        Rows(step.slots, step.lengths, uploader.device, step.positions, step.deferred, tensors),
        slot_index,
        sampled_index if len(step.sampled) < len(token_ids) else None,
        top_index,
        ScoreInput(step.scored, *sent[9:]) if step.scored else None,
    )


def _chunks(plan: StepPlan, scheduler: Scheduler) -> list[_Chunk]:
    starts = len(plan.decoding) + np.cumsum(plan.chunk_sizes) - plan.chunk_sizes
    read = scheduler.position[plan.prefilling]
    columns = (each.tolist() for each in (plan.prefilling, read, read + plan.chunk_sizes, starts))
    return [_Chunk(scheduler.sequence(slot), *numbers) for slot, *numbers in zip(*columns, strict=True)]


def _scored(chunk: _Chunk) -> SequenceOf[ScoredTokens]:
    """The tokens to score that the chunk's hidden states predict.

    The hidden state of prompt token i predicts token i + 1, so scores from `score_start` on need the hidden states from
    `score_start` - 1 on. The last token's hidden state predicts `next_token_ids`.
    """
    sequence, start, end, packed_start = chunk
    request = sequence.request
    if request is None or (request.score_start is None and not request.next_token_ids):
        return ()
    last, params = len(sequence.prompt) - 1, request.params
    found = []
    if request.score_start is not None:
        first = max(start, request.score_start - 1)
        if first < min(end, last):
            index = packed_start + first - start
            targets = sequence.prompt[first + 1 : min(end, last) + 1]
            found.append(ScoredTokens(sequence.slot, False, index, targets, params.prompt_logprobs))
    if request.next_token_ids and end > last:
        index = packed_start + last - start
        found.append(ScoredTokens(sequence.slot, True, index, request.next_token_ids, params.logprobs))
    return found


def _joined_scores(parts: list[ScoredTokens]) -> tuple[np.ndarray, ...]:
    """The arrays of `ScoreInput`, on the host: hidden_index, rows, targets, with_alternatives."""
    if not parts:
        return _NONE, _NONE, _NONE, _NONE
    counts = np.array([len(part.targets) for part in parts])
    index_in_part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    advances = np.repeat([not part.are_next for part in parts], counts)
    packed_index = np.repeat([part.packed_index for part in parts], counts) + index_in_part * advances
    is_new = np.diff(packed_index, prepend=-1) > 0  # packed_index ascends: equal values are neighbors
    targets = np.fromiter(chain.from_iterable(_listed(part.targets) for part in parts), np.int64, len(packed_index))
    has_alternatives = np.repeat([part.num_alternatives is not None for part in parts], counts)
    return packed_index[is_new], np.cumsum(is_new) - 1, targets, np.flatnonzero(has_alternatives)


def _listed(targets: SequenceOf[int] | np.ndarray) -> SequenceOf[int]:
    return targets.tolist() if isinstance(targets, np.ndarray) else targets


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)


_NONE = np.zeros(0, np.int64)
NO_STEP = PackedStep(_NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, _NONE, [])
"""A step of no rows: filled up, it is all padding."""
