"""Recorded decode steps on a CPU: the calls of native kernels of a forward pass, recorded for each batch size."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..cpu_kernels.arena import Arena
from ..cpu_kernels.recording import Recording, record
from ..models.model import Model
from ..models.rows import Rows, RowTensors
from .sizing import activation_bytes
from .state_pool import StatePool
from .step_input import PackedStep

logger = logging.getLogger(__name__)


class RecordedDecode:
    """Forward pass and logits of decode steps.

    The first step of a batch size runs op by op, and is recorded meanwhile; the next ones are replayed. A replay makes
    the same calls of native kernels with the same addresses, so results are equal to the bit; what it saves is the
    Python code around the calls. A model whose steps have operations of torch is not recorded.

    A recording has the addresses of the weights, the pool, the logits, the arena and the buffers of this object. They
    live as long as this object.

    Args:
        logits: [P, V] float32: the buffer of all steps' logits.

    Attributes:
        obstacle: why steps are not recorded; empty as long as nothing is known that prevents it.
    """

    def __init__(self, model: Model, pool: StatePool, logits: Tensor) -> None:
        self._model, self._pool, self._logits = model, pool, logits
        num_slots = pool.num_slots
        self._arena = Arena(activation_bytes(model.sizes, num_slots))
        self._recordings: dict[int, Recording] = {}  # batch size → its recording
        self._token_ids = np.zeros(num_slots, np.int64)
        self._columns = np.zeros((3, num_slots), np.int32)  # slot index, position and deferred of `RowTensors`
        self._ends = torch.arange(num_slots + 1, dtype=torch.int32, device="cpu")
        self.obstacle = ""

    @classmethod
    def of(cls, model: Model, pool: StatePool, logits: Tensor) -> RecordedDecode | None:
        """None where a model's steps cannot consist of native kernels."""
        is_native = model.device.type == "cpu" and any(choice.backend == "cpu" for choice in model.ops.choices)
        return cls(model, pool, logits) if is_native and model.pipeline is None else None

    def serves(self, step: PackedStep) -> bool:
        """Whether this object runs a step: every row decodes, and nothing prevents a recording."""
        return not self.obstacle and 0 < len(step.slots) == len(step.sampled) == step.num_tokens - len(step.prompt_ids)

    def fill(self, step: PackedStep, last_token: Tensor) -> Tensor:
        """Writes the numbers of a step that this object serves.

        Args:
            last_token: [P + 1] int64: the token that each slot has sampled last.

        Returns:
            [B] int32: the slot of each row. The next step overwrites it.
        """
        count = len(step.slots)
        columns = self._columns[:, :count]
        columns[0], columns[1], columns[2] = step.slots, step.positions, step.deferred
        np.take(last_token.numpy(), step.slots, out=self._token_ids[:count])
        return torch.from_numpy(columns[0])

    def run(self, step: PackedStep) -> Tensor:
        """Runs the step of `fill`. Returns its logits [B, V], a part of the buffer."""
        count = len(step.slots)
        if recording := self._recordings.get(count):
            recording.replay()
        else:
            self._record(step)
        return self._logits[:count]

    def _record(self, step: PackedStep) -> None:
        count = len(step.slots)
        slot_index, position, deferred = torch.from_numpy(self._columns[:, :count])
        tensors = RowTensors(slot_index, self._ends[: count + 1], position, deferred, self._ends[:count])
        rows = Rows(step.slots, step.lengths, self._model.device, step.positions, step.deferred, tensors)
        launch = partial(self._launch, torch.from_numpy(self._token_ids[:count]), rows, self._logits[:count])
        recording, self.obstacle = record(launch, self._arena)
        if recording is None:
            self._recordings.clear()  # a tensor that is kept may lie where a recording writes
            logger.info("decode steps are not recorded: %s", self.obstacle)
            return
        self._recordings[count] = recording

    def _launch(self, token_ids: Tensor, rows: Rows, logits: Tensor) -> None:
        self._model.logits(self._model.forward(token_ids, rows, self._pool.layers), out=logits)
