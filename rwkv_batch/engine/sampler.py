"""Logits → token ids and log-probabilities, for all rows of a step at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.upload import upload
from ..ops import OpTable
from .host_copy import HostCopy
from .logprobs import TOP_TOKENS, Logprobs, TopLogprobs
from .request import Constraint, Request
from .sample import PARTS, SAMPLE
from .slot_tables import SlotTables, Vocabulary


class SampledTokens(NamedTuple):
    """One sampled token for each row, on the host."""

    token_ids: np.ndarray
    """[B] int64."""
    logprobs: np.ndarray
    """[B] float64, under the model's own distribution, natural logarithm."""
    alternatives: list[tuple[int, Logprobs]]
    """(row, what it asks for), where a row asks for `logprobs`."""


class Sampled:
    """One sampled token for each row, on its way to the host.

    Args:
        slots: [B] int64, of the rows.
        token_ids, logprobs: on the device; B rows, and after them those of padding.
        rows, top: the rows that ask for alternatives, and what they get; None where no row does.
        constraints: (row, constraint) of those sequences that had one when the step was launched. By the time of
            `read` a slot may belong to another sequence.
    """

    def __init__(
        self,
        slots: np.ndarray,
        token_ids: Tensor,
        logprobs: Tensor,
        rows: list[int],
        top: TopLogprobs | None,
        constraints: list[tuple[int, Constraint]],
    ) -> None:
        self.slots = slots
        self._token_ids, self._logprobs = HostCopy(token_ids), HostCopy(logprobs)
        self._rows, self._top = rows, top
        self._constraints = constraints

    def read(self) -> SampledTokens:
        """Waits for the tokens, and tells each constraint what its sequence has sampled."""
        count = len(self.slots)
        token_ids, logprobs = (copy.read().numpy()[:count] for copy in (self._token_ids, self._logprobs))
        for row, constraint in self._constraints:
            constraint.accept(int(token_ids[row]))
        found = self._top.read() if self._top is not None else []
        return SampledTokens(token_ids, logprobs, list(zip(self._rows, found, strict=True)))


class Sampler:
    """Sampling for P slots.

    `assign` resets everything a slot holds: settings, penalties, random stream, position.

    Args:
        ops: implementations of `OPS`.
    """

    OPS = (SAMPLE, *PARTS, TOP_TOKENS)

    def __init__(self, num_slots: int, vocabulary: Vocabulary, device: torch.device, ops: OpTable) -> None:
        self.tables = SlotTables(num_slots, vocabulary, device)
        self._ops = ops
        self._num_seen: dict[int, int] = {}
        self._constraints: dict[int, Constraint] = {}
        self._num_logprobs: dict[int, int] = {}

    def assign(self, slot: int, request: Request, constraint: Constraint | None = None) -> None:
        """A new sequence takes `slot`."""
        self.release(slot)
        num_seen = self.tables.assign(slot, request)
        if num_seen is not None:
            self._num_seen[slot] = num_seen
        if constraint is not None:
            self._constraints[slot] = constraint
        if request.params.logprobs is not None:
            self._num_logprobs[slot] = request.params.logprobs

    def release(self, slot: int) -> None:
        """The slot's sequence has ended."""
        for table in (self._num_seen, self._constraints, self._num_logprobs):
            table.pop(slot, None)

    @property
    def waits_for_tokens(self) -> bool:
        """What some slot may sample next depends on the token before it: its result must be read first."""
        return bool(self._constraints)

    @property
    def wants_alternatives(self) -> bool:
        """Some slot asks for more than its own token's log-probability: the logits are needed after the draw."""
        return bool(self._num_logprobs)

    def prepare(self, slots: np.ndarray) -> None:
        """Bring the tables up to date before these slots sample."""
        if self._num_seen:
            penalized = [slot for slot in slots.tolist() if slot in self._num_seen]
            for slot in penalized:
                self._num_seen[slot] += 1
            self.tables.reserve_seen(max((self._num_seen[slot] for slot in penalized), default=0))
        for slot in slots.tolist() if self._constraints else ():
            if slot in self._constraints:
                allowed = torch.zeros(self.tables.vocab_size, dtype=torch.bool)
                self._constraints[slot].allowed(allowed)
                self.tables.set_mask(slot, allowed)

    def draw(self, logits: Tensor, slot_index: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the next token of each row: the op `sample` on this sampler's tables."""
        token_ids, logprobs = self._ops.sample(logits, slot_index, self.tables, self._ops)
        return token_ids, logprobs

    def send(self, slots: np.ndarray, token_ids: Tensor, logprobs: Tensor, logits: Tensor | None = None) -> Sampled:
        """Start what was drawn on its way to the host, with the alternatives that rows ask for, from their logits."""
        rows: list[int] = []
        top = None
        if self._num_logprobs and logits is not None:
            rows = [i for i, slot in enumerate(slots.tolist()) if slot in self._num_logprobs]
        if rows and logits is not None:
            counts = [self._num_logprobs[slots[row]] for row in rows]
            index = upload(rows, torch.int64, logits.device)
            top = TopLogprobs(logits, index, logprobs[index], token_ids[index], counts, self._ops)
        constraints = []
        if self._constraints:
            owners = map(self._constraints.get, slots.tolist())
            constraints = [(row, constraint) for row, constraint in enumerate(owners) if constraint is not None]
        return Sampled(slots, token_ids, logprobs, rows, top, constraints)
