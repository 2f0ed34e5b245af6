"""Tokens seen so far in each slot, and what they subtract from the logits.

Sparse: a slot lists the distinct ids it has seen, never the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling_params import SamplingParams

_DECAY = 3
"""Column of the settings: presence, frequency, repetition, decay."""


class Penalties:
    """Presence, frequency and repetition penalties with decay, for P slots.

    Args:
        uncounted: [V] bool, tokens whose occurrences ChatRWKV does not count (digits, spaces, tabs).
    """

    def __init__(self, num_slots: int, uncounted: Tensor) -> None:
        device = uncounted.device
        self._uncounted = uncounted
        self._settings = torch.zeros(num_slots, 4, device=device)
        self._skips_uncounted = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self._length = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._ids = torch.zeros(num_slots, 64, dtype=torch.int64, device=device)
        self._count = torch.zeros(num_slots, 64, device=device)
        self._generated = torch.zeros(num_slots, 64, dtype=torch.bool, device=device)
        self._active: set[int] = set()

    def assign(self, slot: int, params: SamplingParams, prompt_token_ids: list[int]) -> None:
        """Start a new sequence in `slot`: nothing generated; the prompt counts for the repetition penalty only."""
        self._active.discard(slot)
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty, params.penalty_decay)
        if penalties[:3] == (0.0, 0.0, 1.0):
            return
        self._active.add(slot)
        seen = sorted(set(prompt_token_ids)) if params.repetition_penalty != 1 else []
        self._reserve(len(seen) + 1)
        self._settings[slot] = torch.tensor(penalties)
        self._skips_uncounted[slot] = params.top_p_order == "rwkv"
        self._length[slot] = len(seen)
        self._ids[slot] = 0
        self._ids[slot, : len(seen)] = torch.tensor(seen, dtype=torch.int64)
        self._count[slot] = 0
        self._generated[slot] = False

    def rows(self, slots: list[int]) -> list[int]:
        """Which of these slots have a penalty, by their place in the list."""
        return [row for row, slot in enumerate(slots) if slot in self._active] if self._active else []

    def apply(self, logits: Tensor, slots: list[int]) -> None:
        """Penalise logits [B, V] in place; row i belongs to slots[i]."""
        rows, index = self._penalized(slots)
        length = self._length[index][:, None]
        width = int(length.max())
        ids, count, generated = (table[index, :width] for table in (self._ids, self._count, self._generated))
        presence, frequency, repetition, _ = self._settings[index, :, None].unbind(1)
        old = logits[rows[:, None], ids]
        new = torch.where(old > 0, old / repetition, old * repetition) - count * frequency - generated * presence
        listed = torch.arange(width, device=ids.device) < length
        logits.index_put_((rows[:, None], ids), torch.where(listed & old.isfinite(), new - old, 0.0), accumulate=True)

    def count(self, token_ids: Tensor, slots: list[int]) -> None:
        """Decay all counts, then count the tokens [B] just sampled."""
        rows, index = self._penalized(slots)
        token_ids, length = token_ids[rows], self._length[index]
        self._reserve(int(length.max()) + 1)
        ids = self._ids[index]
        listed = torch.arange(ids.shape[1], device=ids.device) < length[:, None]
        match = (ids == token_ids[:, None]) & listed
        is_new = ~match.any(1)
        entry = torch.where(is_new, length, match.int().argmax(1))
        self._count[index] *= self._settings[index, _DECAY, None]
        self._ids[index, entry] = token_ids
        self._count[index, entry] += torch.where(self._skips_uncounted[index] & self._uncounted[token_ids], 0.0, 1.0)
        self._generated[index, entry] = True
        self._length[index] += is_new

    def _penalized(self, slots: list[int]) -> tuple[Tensor, Tensor]:
        """The rows whose slots have penalties, and those slots."""
        rows = self.rows(slots)
        device = self._ids.device
        return torch.tensor(rows, device=device), torch.tensor([slots[row] for row in rows], device=device)

    def _reserve(self, width: int) -> None:
        capacity = self._ids.shape[1]
        while capacity < width:
            capacity *= 2
        extra = capacity - self._ids.shape[1]
        if extra:
            pad = torch.nn.functional.pad
            self._ids, self._count = pad(self._ids, (0, extra)), pad(self._count, (0, extra))
            self._generated = pad(self._generated, (0, extra))
