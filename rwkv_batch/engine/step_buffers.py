"""The numbers of a recorded step: buffers on the device that recordings read, refilled in one transfer a step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..models.rows import RecordedRows
from ..transfer import Staging, Uploader
from .recorded_sizes import StepSize
from .step_input import PackedStep

ROW_COLUMNS = {"sampled_slot": -1, "slot_index": -1, "position": 0, "last_token_index": 0}
"""The numbers of each row, int32, with those of padding.

`sampled_slot`: the slot that the row samples a token for; -1 for none. It comes first, so that a draw finds it at the
same place in steps with and without prompt chunks. `slot_index`, `position`: as in `Rows`. `last_token_index`: packed
index of the row's last token.
"""
_PADDING = np.array([*ROW_COLUMNS.values()], np.int32)[:, None]
_FROM_TABLE = -1
"""In place of a token id: the token that the slot has sampled last, which the device reads from its table."""


class StepTensors(NamedTuple):
    """The buffers of a size, as tensors on the device."""

    sampled_slot: Tensor
    """[B] int32, for the step's sequences."""
    rows: RecordedRows
    last_token_index: Tensor | None
    """[B] int32, for the step's sequences; None where every token is a row's last."""
    token_ids: Tensor | None
    """[M] int32; -1: the token that the slot has sampled last. None where all are."""


class StepBuffers:
    """One buffer for all sizes, since steps run one after the other.

    It begins with `top_rows`; then come the row columns; and with prompt chunks the row ends, the row of each token and
    the token ids. Each part begins at a multiple of 16 bytes.

    Args:
        num_slots, max_tokens: of the largest step.
        uploader: counts the transfers.

    Attributes:
        top_rows: [P] int32 on the device: the sequences of the step that return the most likely tokens. Further
            entries are 0.
    """

    def __init__(self, num_slots: int, max_tokens: int, uploader: Uploader) -> None:
        self._uploader = uploader
        self._start = _aligned(num_slots)
        largest = StepSize(num_slots, max_tokens, True)
        self._staging = Staging((self._end(largest),), torch.int32, uploader.device)
        self._numbers = torch.zeros(self._end(largest), dtype=torch.int32, device=uploader.device)
        self.top_rows = self._numbers[:num_slots]

    def tensors(self, size: StepSize) -> StepTensors:
        """The buffers of a size."""
        sequences, rows = size.num_sequences, size.num_rows
        stride = _aligned(rows)
        columns = self._numbers[self._start : self._start + len(ROW_COLUMNS) * stride].view(len(ROW_COLUMNS), stride)
        named = dict(zip(ROW_COLUMNS, columns[:, :rows], strict=True))
        sampled_slot, slots, positions = named["sampled_slot"][:sequences], named["slot_index"], named["position"]
        if not size.has_prompts:
            return StepTensors(sampled_slot, RecordedRows.decoding(slots, positions), None, None)
        ends, token_rows, token_ids = self._token_parts(self._numbers, size)
        step_rows = RecordedRows(slots, positions, ends, token_rows)
        return StepTensors(sampled_slot, step_rows, named["last_token_index"][:sequences], token_ids)

    def fill(self, step: PackedStep, size: StepSize) -> None:
        """Writes a step, filled up with padding, to the device in one transfer."""
        count, rows, stride = len(step.slots), size.num_rows, _aligned(size.num_rows)
        staging = self._staging.take()
        numbers: np.ndarray = staging.numpy()
        top_rows = step.sampled[step.top_rows]
        numbers[: len(top_rows)], numbers[len(top_rows) : self._start] = top_rows, 0
        columns = numbers[self._start : self._start + len(ROW_COLUMNS) * stride].reshape(len(ROW_COLUMNS), stride)
        columns[:] = _PADDING
        named = dict(zip(ROW_COLUMNS, columns, strict=True))
        named["sampled_slot"][step.sampled] = step.sampled_slots
        named["slot_index"][:count], named["position"][:count] = step.slots, step.positions
        named["last_token_index"][:count] = step.ends - 1
        if size.has_prompts:
            num_tokens, num_decoding = step.num_tokens, step.num_tokens - len(step.prompt_ids)
            ends, token_rows, token_ids = self._token_parts(numbers, size)
            ends[0], ends[1 : count + 1], ends[count + 1 :] = 0, step.ends, num_tokens
            ends[rows] = size.num_tokens  # the last row has all tokens of the padding
            token_rows[:num_tokens] = np.repeat(np.arange(count), step.lengths)
            token_rows[num_tokens:] = rows - 1
            token_ids[:num_decoding], token_ids[num_tokens:] = _FROM_TABLE, 0
            token_ids[num_decoding:num_tokens] = step.prompt_ids
        end = self._end(size)
        self._numbers[:end].copy_(staging[:end], non_blocking=True)
        self._uploader.num_transfers += 1
        self._staging.sent()

    def _token_parts(self, numbers: Any, size: StepSize) -> tuple[Any, ...]:
        """The row ends [B + 1], token rows [M] and token ids [M] of a step with prompt chunks."""
        start = self._start + len(ROW_COLUMNS) * _aligned(size.num_rows)
        parts = []
        for count in (size.num_rows + 1, size.num_tokens, size.num_tokens):
            parts.append(numbers[start : start + count])
            start += _aligned(count)
        return tuple(parts)

    def _end(self, size: StepSize) -> int:
        """How many numbers a step of this size has."""
        rows = self._start + len(ROW_COLUMNS) * _aligned(size.num_rows)
        return rows + (_aligned(size.num_rows + 1) + 2 * _aligned(size.num_tokens)) * size.has_prompts


def _aligned(count: int) -> int:
    """The next multiple of 4 numbers, which are 16 bytes."""
    return -(-count // 4) * 4
