"""The constraints of the slots: sampled tokens advance them, and they give the masks of the next tokens."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ..transfer import Staging, Uploader
from .request import Constraint, ConstraintBatch
from .slot_tables import SlotTables
from .stats import Clock, EngineStats


class TokenCopy(Protocol):
    """The sampled tokens of a launched step, with their copy to the host in flight."""

    def token_ids(self) -> np.ndarray:
        """Waits for the tokens, [n] int64."""


class _Awaited(NamedTuple):
    """The latest token of a slot, which its constraint has not been given yet."""

    tokens: TokenCopy
    row: int


class SlotConstraints:
    """The constraints of P slots.

    The mask of a token depends on the token before. A step's forward pass does not: it reads the token before on the
    device. The forward pass is therefore launched first, and while the device computes it, `advance` waits for the
    tokens of the step before and `upload` fills and sends the masks that the step's draw needs. Only a step that
    samples for a slot with a constraint waits, and only for tokens of such slots.

    Args:
        tables: their masks are set.
        uploader: counts the transfers.
        stats: counts the seconds.
    """

    def __init__(self, tables: SlotTables, uploader: Uploader, stats: EngineStats) -> None:
        self._tables, self._uploader, self._stats = tables, uploader, stats
        self._constraints: dict[int, Constraint] = {}
        self._awaited: dict[int, _Awaited] = {}
        self._staging: Staging | None = None

    def open(self, slot: int, constraint: Constraint) -> None:
        """Gives a slot the constraint of a new sequence."""
        self._constraints[slot] = constraint

    def release(self, slots: np.ndarray) -> None:
        """Forgets the constraints of these slots."""
        if self._constraints:
            for slot in slots.tolist():
                self._constraints.pop(slot, None)
                self._awaited.pop(slot, None)

    def follow(self, slots: np.ndarray, tokens: TokenCopy) -> None:
        """Notes that a step samples a token for each of these slots [n] int64."""
        if self._constraints:
            rows = ((slot, row) for row, slot in enumerate(slots.tolist()) if slot in self._constraints)
            self._awaited.update((slot, _Awaited(tokens, row)) for slot, row in rows)

    def prepare(self, slots: np.ndarray) -> None:
        """Sets the masks with which these slots [n] int64 sample next. Call it after their forward pass is launched."""
        constrained = [slot for slot in slots.tolist() if slot in self._constraints] if self._constraints else []
        if not constrained:
            return
        clock = Clock()
        token_ids = self._take_awaited(constrained)
        self._stats.wait_seconds += clock.lap()
        for batch, own in self._by_batch(list(token_ids)):
            batch.accept([self._constraints[slot] for slot in own], [token_ids[slot] for slot in own])
        self._upload(constrained)
        self._stats.mask_seconds += clock.lap()

    def _take_awaited(self, slots: SequenceOf[int]) -> dict[int, int]:
        """Slot → its latest token, of those of `slots` whose constraint has not been given it. Waits for the tokens."""
        awaited = [(slot, self._awaited.pop(slot)) for slot in slots if slot in self._awaited]
        read = {
            id(tokens): tokens.token_ids().tolist() for tokens in {id(a.tokens): a.tokens for _, a in awaited}.values()
        }
        return {slot: read[id(tokens)][row] for slot, (tokens, row) in awaited}

    def _by_batch(self, slots: SequenceOf[int]) -> list[tuple[ConstraintBatch, list[int]]]:
        """Divides slots by the object that serves their constraints."""
        groups: dict[int, tuple[ConstraintBatch, list[int]]] = {}
        for slot in slots:
            batch = self._constraints[slot].batch
            groups.setdefault(id(batch), (batch, []))[1].append(slot)
        return list(groups.values())

    def _upload(self, slots: SequenceOf[int]) -> None:
        """Fills the masks of these slots, and sends them in one transfer."""
        tables = self._tables
        num_words = tables.mask.shape[1]
        if self._staging is None:
            self._staging = Staging((tables.num_slots * (num_words + 1),), torch.int32, tables.device)
        groups = self._by_batch(slots)
        slots = [slot for _, own in groups for slot in own]
        buffer = self._staging.take()[: len(slots) * (num_words + 1)]
        masks, index = buffer.numpy()[: len(slots) * num_words].reshape(-1, num_words), buffer.numpy()[-len(slots) :]
        index[:] = slots
        start = 0
        for batch, own in groups:
            batch.fill([self._constraints[slot] for slot in own], masks[start : start + len(own)])
            start += len(own)
        sent = buffer.to(tables.device, non_blocking=True)
        self._staging.sent()
        self._uploader.num_transfers += 1
        tables.set_masks(sent[-len(slots) :].long(), sent[: -len(slots)].view(-1, num_words))
