"""Penalties: what the tokens seen so far subtract from the logits.

A slot lists the distinct ids that it has seen, so the work does not grow with the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .slot_tables import Float, Integer, SlotTables


def penalize(logits: Tensor, rows: Tensor, slots: Tensor, tables: SlotTables) -> None:
    """Applies presence, frequency and repetition penalties to some rows of logits, in place.

        l ← (l / repetition if l > 0 else l * repetition) - count * frequency - generated * presence

    Args:
        logits: [B, V] float32.
        rows, slots: [n] int64: rows of the logits, and the penalized slots that they belong to.
    """
    length = tables.integers[slots, Integer.NUM_SEEN][:, None]
    width = int(length.max())
    ids = tables.seen_ids[slots, :width].long()
    occurrences, generated = tables.seen_count[slots, :width], tables.seen_generated[slots, :width]
    settings = tables.floats[slots].float()[..., None]
    presence, frequency, repetition = (settings[:, c] for c in (Float.PRESENCE, Float.FREQUENCY, Float.REPETITION))
    old = logits[rows[:, None], ids]
    new = torch.where(old > 0, old / repetition, old * repetition) - occurrences * frequency - generated * presence
    listed = torch.arange(width, device=ids.device) < length
    logits.index_put_((rows[:, None], ids), torch.where(listed & old.isfinite(), new - old, 0.0), accumulate=True)


def count(token_ids: Tensor, slots: Tensor, tables: SlotTables) -> None:
    """Decays all counts of the slots, then counts the tokens just sampled.

    Args:
        token_ids, slots: [n] int64.
        tables: the seen ids must have room for one more in each slot.
    """
    length = tables.integers[slots, Integer.NUM_SEEN]
    ids = tables.seen_ids[slots]
    listed = torch.arange(ids.shape[1], device=ids.device) < length[:, None]
    match = (ids == token_ids[:, None]) & listed
    is_new = ~match.any(1)
    entry = torch.where(is_new, length, match.int().argmax(1))
    counts = tables.seen_count[slots] * tables.floats[slots, Float.DECAY, None].float()
    own = torch.arange(len(slots), device=ids.device)
    skipped = (tables.integers[slots, Integer.SKIPS_UNCOUNTED] > 0) & tables.uncounted[token_ids]
    counts[own, entry] = torch.where(is_new, 0.0, counts[own, entry]) + torch.where(skipped, 0.0, 1.0)
    tables.seen_count[slots] = counts
    tables.seen_ids[slots, entry] = token_ids.int()
    tables.seen_generated[slots, entry] = True
    tables.integers[slots, Integer.NUM_SEEN] += is_new
