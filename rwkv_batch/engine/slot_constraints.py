"""The constraints of the slots: sampled tokens advance them, and they give the masks of the next tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ..transfer import Staging, Uploader
from .request import Constraint, ConstraintBatch
from .slot_tables import SlotTables
from .stats import Clock, EngineStats

_NONE = -1


class TokenCopy(Protocol):
    """The sampled tokens of a launched step, with their copy to the host in flight."""

    def token_ids(self) -> np.ndarray:
        """Waits for the tokens, [n] int64."""


class SlotConstraints:
    """The constraints of P slots.

    The mask of a token depends on the token before. A step's forward pass does not: it reads the token before on the
    device. The forward pass is therefore launched first. While the device computes it, `prepare` waits for the tokens
    of the step before, advances the constraints, and fills and sends the masks that the step's draw needs. Only a step
    that samples for a slot with a constraint waits, and only for tokens of such slots.

    Args:
        tables: their masks are set.
        uploader: counts the transfers.
        stats: counts the seconds.
    """

    def __init__(self, tables: SlotTables, uploader: Uploader, stats: EngineStats) -> None:
        self._tables, self._uploader, self._stats = tables, uploader, stats
        num_slots = tables.num_slots
        self._num_open = 0
        self._constraints: list[Constraint | None] = [None] * num_slots
        self._batches: list[ConstraintBatch] = []
        self._kind = np.full(num_slots, _NONE)  # index of each constraint's batch in `_batches`
        # A slot's latest token that its constraint has not been given yet: in which copy, and in which row of it.
        self._copy = np.full(num_slots, None)
        self._row = np.full(num_slots, _NONE)
        self._staging: Staging | None = None

    def open(self, slot: int, constraint: Constraint) -> None:
        """Gives a slot the constraint of a new sequence."""
        batch = constraint.batch
        kinds = [kind for kind, known in enumerate(self._batches) if known is batch]
        if not kinds:
            kinds = [len(self._batches)]
            self._batches.append(batch)
        self._constraints[slot], self._kind[slot] = constraint, kinds[0]
        self._num_open += 1

    def release(self, slots: np.ndarray) -> None:
        """Forgets the constraints of these slots."""
        if not self._num_open:
            return
        own = slots[self._kind[slots] != _NONE]
        self._kind[own] = self._row[own] = _NONE
        self._copy[own] = None
        for slot in own.tolist():
            self._constraints[slot] = None
        self._num_open -= len(own)

    def follow(self, slots: np.ndarray, tokens: TokenCopy) -> None:
        """Notes that a step samples a token for each of these slots [n] int64."""
        if self._num_open:
            rows = np.flatnonzero(self._kind[slots] != _NONE)
            self._row[slots[rows]] = rows
            self._copy[slots[rows]] = tokens

    def prepare(self, slots: np.ndarray) -> None:
        """Sets the masks with which these slots [n] int64 sample next. Call it after their forward pass is launched."""
        own = slots[self._kind[slots] != _NONE] if self._num_open else slots[:0]
        if not len(own):
            return
        clock = Clock()
        awaited = own[self._row[own] != _NONE]
        token_ids = self._take_tokens(awaited)
        self._stats.wait_seconds += clock.lap()
        kinds = self._kind[own]
        in_order = own[np.argsort(kinds, kind="stable")]
        for kind in np.unique(kinds).tolist():
            of_kind = self._kind[awaited] == kind
            if of_kind.any():
                self._batches[kind].accept(self._of(awaited[of_kind]), token_ids[of_kind].tolist())
        self._upload(in_order)
        self._stats.mask_seconds += clock.lap()

    def _of(self, slots: np.ndarray) -> list[Constraint | None]:
        return [self._constraints[slot] for slot in slots.tolist()]

    def _take_tokens(self, slots: np.ndarray) -> np.ndarray:
        """The tokens [n] int64 that the constraints of these slots have not been given yet. Waits for them."""
        token_ids = np.zeros(len(slots), np.int64)
        copies = self._copy[slots]
        for tokens in set(copies.tolist()):
            is_there = copies == tokens
            token_ids[is_there] = tokens.token_ids()[self._row[slots[is_there]]]
        self._row[slots] = _NONE
        self._copy[slots] = None
        return token_ids

    def _upload(self, slots: np.ndarray) -> None:
        """Fills the masks of these slots, and sends them in one transfer.

        Args:
            slots: [n] int64, those with the same batch next to each other.
        """
        tables, count = self._tables, len(slots)
        num_words = tables.mask.shape[1]
        if self._staging is None:
            self._staging = Staging((tables.num_slots * (num_words + 1),), torch.int32, tables.device)
        buffer = self._staging.take()[: count * (num_words + 1)]
        words = buffer.numpy()
        masks, words[-count:] = words[:-count].reshape(count, num_words), slots
        kinds = self._kind[slots]
        for kind in np.unique(kinds).tolist():
            first, last = np.searchsorted(kinds, (kind, kind + 1)).tolist()
            self._batches[kind].fill(self._of(slots[first:last]), masks[first:last])
        sent = buffer.to(tables.device, non_blocking=True)
        self._staging.sent()
        self._uploader.num_transfers += 1
        tables.set_masks(sent[-count:].long(), sent[:-count].view(count, num_words))
