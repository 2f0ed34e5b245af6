"""The sampler: logits → token ids and log-probabilities, for all rows of a step at once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from ..ops import OpTable
from ..settings import LogprobsMode
from ..transfer import HostCopy, Uploader
from .booking import SampledTokens
from .logprobs import TOP_TOKENS, TopLogprobs, TopTensors
from .processed import ProcessedLogits
from .request import Request
from .sample import PARTS, SAMPLE
from .slot_constraints import SlotConstraints
from .slot_tables import SlotTables, Vocabulary
from .stats import EngineStats

_NONE = -1


class Sampled:
    """The sampled tokens of a launched step, one for each of n rows, with their copies to the host in flight.

    Args:
        token_ids, logprobs: [n or more] int64 and float64, on the device.
        rows: [n] int64: which of the tensors' entries are the n rows.
        top_rows, top: those of the n rows that return the most likely tokens, and those tokens; None if no row does.
    """

    def __init__(
        self, token_ids: Tensor, logprobs: Tensor, rows: np.ndarray, top_rows: np.ndarray, top: TopLogprobs | None
    ) -> None:
        self._rows = rows
        self._token_ids, self._logprobs = HostCopy(token_ids), HostCopy(logprobs)
        self._top_rows, self._top = top_rows, top

    def token_ids(self) -> np.ndarray:
        """Waits for the tokens, [n] int64."""
        return self._token_ids.read().numpy()[self._rows]

    def read(self) -> SampledTokens:
        """Waits for all results."""
        logprobs, top = self._logprobs.read().numpy()[self._rows], self._top.read() if self._top else None
        return SampledTokens(self.token_ids(), logprobs, self._top_rows, top)


class Sampler:
    """Samples for P slots, with the settings and the history of each slot in tables on the device.

    Args:
        ops: implementations of `OPS`.
        uploader: sends settings and masks to the device; None makes a new one.
        logprobs_mode: which log-probabilities are returned, see `LLM`.
        stats: counts the seconds that masks take; None makes new ones.
    """

    OPS = (SAMPLE, *PARTS, TOP_TOKENS)

    def __init__(
        self,
        num_slots: int,
        vocabulary: Vocabulary,
        device: torch.device,
        ops: OpTable,
        uploader: Uploader | None = None,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        stats: EngineStats | None = None,
    ) -> None:
        self.tables = SlotTables(num_slots, vocabulary, device, uploader)
        self._ops = ops
        self._is_processed = logprobs_mode == "processed_logprobs"
        self._num_seen = np.full(num_slots, _NONE)  # at most so many distinct ids in each slot with penalties
        self._num_logprobs = np.full(num_slots, _NONE)
        self._constraints = SlotConstraints(
            self.tables, self.tables.uploader, stats or EngineStats(num_slots, num_slots)
        )

    def assign(self, slots: SequenceOf[int], requests: SequenceOf[Request]) -> None:
        """Gives these slots to new sequences: settings, penalties, random stream and position are reset."""
        if not slots:
            return
        self._num_seen[slots] = self.tables.assign(slots, requests)
        asked = [request.params.logprobs for request in requests]
        self._num_logprobs[slots] = [_NONE if count is None else count for count in asked]
        for slot, request in zip(slots, requests, strict=True):
            if request.new_constraint is not None:
                self._constraints.open(slot, request.new_constraint())

    def release(self, slots: np.ndarray) -> None:
        """Forgets the sequences of these slots."""
        self._num_seen[slots] = _NONE
        self._num_logprobs[slots] = _NONE
        self._constraints.release(slots)

    @property
    def returns_logprobs(self) -> np.ndarray:
        """[P] bool: slots that return the most likely tokens. Their logits are needed after the draw."""
        return self._num_logprobs != _NONE

    def reserve(self, slots: np.ndarray) -> None:
        """Makes room for one more seen id, before the slots [n] int64 sample. It may replace tables by wider ones."""
        seen = self._num_seen[slots]
        if (seen != _NONE).any():
            penalized = slots[seen != _NONE]
            self._num_seen[penalized] += 1
            self.tables.reserve_seen(int(self._num_seen[penalized].max()))

    def constrain(self, slots: np.ndarray) -> None:
        """Sets the masks of constraints, before the slots [n] int64 sample.

        It may wait for the tokens that the slots have sampled last. Launch the forward pass before, so that the device
        computes meanwhile.
        """
        self._constraints.prepare(slots)

    def draw(self, logits: Tensor, slot_index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples the next token of each row, by the op `sample` on this sampler's tables.

        With processed log-probabilities, the processed logits replace `logits` [B, V].
        """
        processed = ProcessedLogits(logits, slot_index, self.tables) if self._is_processed else None
        token_ids, logprobs = self._ops.sample(logits, slot_index, self.tables, self._ops)
        if processed is not None:
            logprobs = processed.replace(logits, token_ids, self._ops)
        return token_ids, logprobs

    def top(self, logits: Tensor, rows: Tensor, token_ids: Tensor, logprobs: Tensor, count: int) -> TopTensors:
        """The `count` most likely tokens of m rows, with the scores of the tokens that these rows have sampled.

        Args:
            logits: [B, V], as `draw` has left them.
            rows: [m] int64, on the device.
            token_ids, logprobs: [B], the result of `draw`.
        """
        return TopTensors.of(logits, rows, logprobs[rows], token_ids[rows], count, self._ops)

    def most_asked(self, slots: np.ndarray) -> int:
        """The largest number of most likely tokens that one of the slots [m] int64 returns; 0 if m is 0."""
        return int(self._num_logprobs[slots].max(initial=0))

    def copy_to_host(
        self,
        slots: np.ndarray,
        token_ids: Tensor,
        logprobs: Tensor,
        rows: np.ndarray | None = None,
        top_rows: np.ndarray | None = None,
        top: TopLogprobs | None = None,
    ) -> Sampled:
        """Starts the asynchronous copies of the sampled tokens to the host.

        Args:
            slots: [n] int64, that have sampled.
            token_ids, logprobs: the result of `draw`, [n] or more.
            rows: [n] int64: which entries of these are the slots'; None for the first n.
            top_rows, top: [m] int64, those of the n that return the most likely tokens, and these; None if m is 0.
        """
        rows = np.arange(len(slots)) if rows is None else rows
        sampled = Sampled(token_ids, logprobs, rows, rows[:0] if top_rows is None else top_rows, top)
        self._constraints.follow(slots, sampled)
        return sampled
