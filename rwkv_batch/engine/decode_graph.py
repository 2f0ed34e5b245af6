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
from ..transfer import Staging, Uploader
from .launched_step import StepResults
from .sampler import Sampler
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
        logits: [P, V] float32: the buffer of all steps' logits.
    """

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler, uploader: Uploader, logits: Tensor) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._uploader, self._logits = uploader, logits
        self._sizes = bucket_sizes(pool.num_slots)
        self._steps: dict[int, RecordedStep] = {}
        self._generation = sampler.tables.generation
        self._memory: Any = None
        self._stream: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    def find(self, shape: StepShape) -> RecordedStep:
        """The recorded step that serves a shape. Records it if there is none yet.

        `Sampler.reserve` must have been called for the step: it may replace a table by a wider one. A recorded step
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
        step = RecordedStep(self._model, self._pool, self._sampler, self._uploader, self._logits[:num_rows])
        if self._stream is not None:
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            step.capture(self._stream, self._memory)
            logger.debug("recorded a decode step of %d rows", num_rows)
        return step


class RecordedStep:
    """A decode step of B rows over fixed device buffers: captured once, then replayed.

    The forward pass and the draw are two recordings: the masks of constraints are uploaded between them, while the
    device computes the forward pass.

    Args:
        logits: [B, V] float32, a buffer that all steps may share: the forward pass writes it, the draw reads it.
    """

    def __init__(self, model: Model, pool: StatePool, sampler: Sampler, uploader: Uploader, logits: Tensor) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._uploader, self._logits = uploader, logits
        self._rows = DecodeRows(len(logits), model.device)
        self._staging = Staging((3, len(logits)), torch.int32, model.device)
        self._forward_graph: torch.cuda.CUDAGraph | None = None
        self._draw_graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, Tensor] | None = None

    def launch_forward(self, slots: np.ndarray, position: np.ndarray, deferred: np.ndarray) -> None:
        """Feeds every slot [n] int64 its last token. Further rows are padding."""
        self.fill(slots, position, deferred)
        if self._forward_graph is None:
            self._forward()
        else:
            self._forward_graph.replay()

    def launch_draw(self, slots: np.ndarray) -> StepResults:
        """Samples the next token of the slots of `launch_forward`."""
        if self._draw_graph is None:
            results = self._draw()
        else:
            self._draw_graph.replay()
            assert self._results is not None
            results = self._results
        return StepResults(slots, self._sampler.copy_to_host(slots, *results), None)

    def fill(self, slots: np.ndarray, position: np.ndarray, deferred: np.ndarray) -> None:
        """Writes the numbers of `DecodeRows` to the device, in one transfer. Unused rows are padding: slot -1."""
        staging = self._staging.take()
        numbers = staging.numpy()
        numbers[0, : len(slots)], numbers[0, len(slots) :] = slots, -1
        numbers[1, : len(slots)], numbers[1, len(slots) :] = position, 0
        numbers[2, : len(slots)], numbers[2, len(slots) :] = deferred, -1
        self._rows.numbers.copy_(staging, non_blocking=True)
        self._uploader.num_transfers += 1
        self._staging.sent()

    def capture(self, stream: torch.cuda.Stream, memory: Any) -> None:
        """Records the step. All rows are padding meanwhile, so no state changes.

        Args:
            stream: runs the warm-up and the recording. Libraries allocate a workspace for each stream when they first
                run on it; the warm-up on the same stream makes them do that before the recording.
            memory: handle of the memory pool that all recorded steps share.
        """
        forward, draw = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        # If a recording fails, torch does not restore the current stream; this block does.
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles kernels and lets libraries allocate
                self._forward()
                self._draw()
            # "thread_local": calls of other threads that a recording forbids, such as an allocation, must not end it.
            with torch.cuda.graph(forward, pool=memory, stream=stream, capture_error_mode="thread_local"):
                self._forward()
            with torch.cuda.graph(draw, pool=memory, stream=stream, capture_error_mode="thread_local"):
                self._results = self._draw()
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        self._forward_graph, self._draw_graph = forward, draw

    def _forward(self) -> None:
        # Padding rows, with slot -1, read the last row of the tables.
        token_ids = self._sampler.tables.last_token[self._rows.slot_index.long()]
        hidden = self._model.forward(token_ids, cast(Rows, self._rows), self._pool.layers)
        self._model.logits(hidden, out=self._logits)

    def _draw(self) -> tuple[Tensor, Tensor]:
        return self._sampler.draw(self._logits, self._rows.slot_index)
