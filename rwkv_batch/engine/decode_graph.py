"""Recorded steps: decode steps of a fixed number of rows, captured once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from itertools import takewhile
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..models.model import Model
from ..models.rows import DecodeRows, Rows
from ..transfer import Uploader
from .launched_step import StepResults
from .sampler import Sampler
from .scheduler import Scheduler, StepPlan
from .state_pool import StatePool

logger = logging.getLogger(__name__)


def bucket_sizes(most: int) -> list[int]:
    """The numbers of rows for which steps are recorded: powers of two, above 64 also the sizes halfway, and `most`."""
    sizes = sorted({2**i for i in range(most.bit_length())} | {3 * 2**i for i in range(5, most.bit_length())})
    return [*takewhile(lambda size: size < most, sizes), most]


class StepShape(NamedTuple):
    """The shape of a step, which decides whether and as what the step is recorded."""

    num_sequences: int
    num_tokens: int
    features: frozenset[str] = frozenset()
    """Tasks of the step beyond decoding: "prompts" (prompt chunks), "logprobs" (returns the most likely tokens)."""

    @property
    def is_recorded(self) -> bool:
        """Whether steps of this shape are recorded: decode steps that return sampled tokens only."""
        return not self.features


class DecodeGraphs:
    """Recorded decode steps of a few sizes. A step runs at the next larger size; the extra rows are padding.

    On a CUDA device each size is captured as a CUDA graph when it is first needed, on a stream of this engine's own.
    Without a CUDA device the same code runs on the same tensors without being recorded.

    Args:
        model, pool, sampler: the ops of the model and of the sampler must be served by kernels that can be recorded:
            they neither synchronize nor read host memory.
        uploader: counts the transfers.
    """

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler, uploader: Uploader) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._uploader = uploader
        self._sizes = bucket_sizes(pool.num_slots)
        self._steps: dict[int, RecordedStep] = {}
        self._generation = sampler.tables.generation
        self._memory: Any = None
        self._stream: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    def find(self, shape: StepShape) -> RecordedStep:
        """The recorded step that serves a shape. Records it if there is none yet.

        `Sampler.prepare` must have been called for the step: it may replace a table by a wider one. A recorded step
        refers to the memory of the tables at its recording, so all recordings are dropped when a table was replaced.
        """
        if self._generation != self._sampler.tables.generation:
            self._forget()
            self._generation = self._sampler.tables.generation
        size = next(size for size in self._sizes if size >= shape.num_sequences)
        if size not in self._steps:
            self._steps[size] = self._record(size)
        return self._steps[size]

    def _forget(self) -> None:
        if self._memory is not None:
            torch.cuda.synchronize(self._model.device)  # a recorded step may still be running
        self._steps.clear()
        self._memory = None

    def _record(self, num_rows: int) -> RecordedStep:
        step = RecordedStep(self._model, self._pool, self._sampler, self._uploader, num_rows)
        if self._stream is not None:
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            step.capture(self._stream, self._memory)
            logger.debug("recorded a decode step of %d rows", num_rows)
        return step


class RecordedStep:
    """A decode step of B rows over fixed device buffers: captured once, then replayed.

    Slots and positions go to the device through two pinned staging buffers in alternation, so that the host can fill
    one while the copy from the other is in flight.
    """

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler, uploader: Uploader, num_rows: int) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._uploader = uploader
        self._rows = DecodeRows(num_rows, model.device)
        is_cuda = model.device.type == "cuda"
        self._staging = [torch.zeros(2, num_rows, dtype=torch.int32, pin_memory=is_cuda) for _ in range(2)]
        self._copied: list[torch.cuda.Event] = []
        if is_cuda:
            self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, Tensor] | None = None

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Feeds every slot of the plan its last token, and samples the next token."""
        slots = plan.decoding
        self.fill(slots, scheduler.position[slots])
        if self._graph is None:
            results = self._compute()
        else:
            self._graph.replay()
            assert self._results is not None
            results = self._results
        return StepResults(slots, self._sampler.copy_to_host(slots, *results), None)

    def fill(self, slots: np.ndarray, position: np.ndarray) -> None:
        """Writes slots and positions to the device buffers, in one transfer. Unused rows are padding: slot -1."""
        self._turn = 1 - self._turn
        staging = self._staging[self._turn]
        if self._copied:
            self._copied[self._turn].synchronize()  # the copy of two steps ago: no wait, unless the host is far ahead
        numbers = staging.numpy()
        numbers[0, : len(slots)], numbers[0, len(slots) :] = slots, -1
        numbers[1, : len(slots)], numbers[1, len(slots) :] = position, 0
        self._rows.numbers.copy_(staging, non_blocking=True)
        self._uploader.num_transfers += 1
        if self._copied:
            self._copied[self._turn].record(torch.cuda.current_stream(self._rows.slot_index.device))

    def capture(self, stream: torch.cuda.Stream, memory: Any) -> None:
        """Records the step. All rows are padding meanwhile, so no state changes.

        Args:
            stream: runs the warm-up and the recording. Libraries allocate a workspace for each stream when they first
                run on it; the warm-up on the same stream makes them do that before the recording.
            memory: handle of the memory pool that all recorded steps share.
        """
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        # If a recording fails, torch does not restore the current stream; this block does.
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles kernels and lets libraries allocate
                self._compute()
            # "thread_local": calls of other threads that a recording forbids, such as an allocation, must not end it.
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
                self._results = self._compute()
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        self._graph = graph

    def _compute(self) -> tuple[Tensor, Tensor]:
        # Padding rows, with slot -1, read the last row of the tables.
        token_ids = self._sampler.tables.last_token[self._rows.slot_index.long()]
        hidden = self._model.forward(token_ids, cast(Rows, self._rows), self._pool.layers)
        return self._sampler.draw(self._model.logits(hidden), self._rows.slot_index)
