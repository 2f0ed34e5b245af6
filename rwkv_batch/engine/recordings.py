"""Recorded steps: steps of a few sizes, captured as CUDA graphs before the first step, and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ..models.model import Model
from ..models.rows import Rows
from ..transfer import Uploader
from .launched_step import StepResults
from .logprobs import TopLogprobs, TopTensors
from .recorded_sizes import TOP_COUNTS, RecordedSizes, StepSize, at_least
from .sampler import Sampler
from .state_pool import StatePool
from .step_buffers import StepBuffers, StepTensors
from .step_input import NO_STEP, PackedStep

T = TypeVar("T")

logger = logging.getLogger(__name__)

TOP_ROWS_AT_ONCE = 128
"""Rows whose most likely tokens are found together. Each takes several numbers of 8 bytes for each id meanwhile."""


class Recordings:
    """The recorded steps of an engine, for the sizes of `RecordedSizes`. What fills a step up to a size is padding.

    A step is up to three recordings: the forward pass with the logits, the draw, and the most likely tokens. The masks
    of constraints are uploaded before the draw, while the device computes the forward pass. Results of the draw lie in
    the same memory for all sizes, so that the most likely tokens need no recording for each size of a draw.

    On a CUDA device each recording is a CUDA graph, captured on a stream of this engine's own. All share one memory
    pool, since they run one after the other. Without a CUDA device the same code runs without being recorded.

    Args:
        model, pool, sampler: the ops of the model and of the sampler must be served by kernels that can be recorded:
            they neither synchronize nor read host memory.
        uploader: counts the transfers.
        logits: [P, V] float32: the buffer of all steps' logits.
        max_tokens: of a step.
    """

    def __init__(
        self, model: Model, pool: StatePool, sampler: Sampler, uploader: Uploader, logits: Tensor, max_tokens: int
    ) -> None:
        self._model, self._pool, self._sampler, self._logits = model, pool, sampler, logits
        num_slots = pool.num_slots
        self._sizes = RecordedSizes(num_slots, max_tokens)
        self._buffers = StepBuffers(num_slots, max_tokens, uploader)
        self._token_ids = torch.zeros(num_slots, dtype=torch.int64, device=model.device)
        self._logprobs = torch.zeros(num_slots, dtype=torch.float64, device=model.device)
        self._forwards: dict[StepSize, Recording[None]] = {}
        self._draws: dict[int, Recording[None]] = {}
        self._tops: dict[tuple[int, int], Recording[TopTensors]] = {}
        self._generation = sampler.tables.generation
        self._memory: Any = None
        self._stream: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    def record_all(self) -> None:
        """Records what is not recorded yet: everything at the first call, which logs how long it takes.

        The largest steps come first: the others then fit into the memory that they have freed.
        """
        start, before = perf_counter(), self._num_recorded
        for size in self._sizes.steps:
            self._forward(size)
        for num_rows in reversed(self._sizes.draws):
            self._draw(num_rows)
        for num_rows in reversed(self._sizes.tops):
            for count in reversed(TOP_COUNTS):
                self._top(num_rows, count)
        if self._stream is not None and (made := self._num_recorded - before):
            logger.info("recorded the steps of %d sizes in %.1f s", made, perf_counter() - start)

    def launch_forward(self, step: PackedStep) -> StepSize:
        """Launches the forward pass of a step that scores nothing. Returns the size at which it runs.

        `Sampler.reserve` must have been called for the step: it may replace a table by a wider one. A recorded draw
        refers to the memory of the tables at its recording, so all draws are dropped when a table was replaced.
        """
        size = self._sizes.step(len(step.slots), step.num_tokens, len(step.prompt_ids) > 0)
        forward = self._forward(size)
        if len(step.sampled):
            self._draw(size.num_sequences)  # a recording needs the buffers, which the step then fills
        self._buffers.fill(step, size)
        forward.launch()
        return size

    def launch_draw(self, step: PackedStep, size: StepSize) -> StepResults:
        """Samples the next tokens of the step of `launch_forward`."""
        if not len(step.sampled):
            return StepResults(step.sampled_slots, None, None)
        self._draw(size.num_sequences).launch()
        top = None
        if len(step.top_rows):
            count = self._sampler.most_asked(step.sampled_slots[step.top_rows])
            sizes = at_least(self._sizes.tops, len(step.top_rows)), at_least(TOP_COUNTS, count)
            top = TopLogprobs(self._top(*sizes).launch(), len(step.top_rows), count)
        drawn = self._token_ids[: size.num_sequences], self._logprobs[: size.num_sequences]
        if self._stream is None:  # the host reads this very memory, which the next step overwrites
            drawn = drawn[0].clone(), drawn[1].clone()
        slots = step.sampled_slots
        return StepResults(slots, self._sampler.copy_to_host(slots, *drawn, step.sampled, step.top_rows, top), None)

    @property
    def _num_recorded(self) -> int:
        return len(self._forwards) + len(self._draws) + len(self._tops)

    def _forward(self, size: StepSize) -> Recording[None]:
        if size not in self._forwards:
            tensors = self._buffers.tensors(size)
            self._forwards[size] = self._recorded(size, partial(self._run_forward, tensors))
        return self._forwards[size]

    def _draw(self, num_rows: int) -> Recording[None]:
        """The draw for `num_rows` sequences, whether all decode or not."""
        if self._generation != self._sampler.tables.generation:
            if self._stream is not None:
                torch.cuda.synchronize(self._model.device)  # a recorded draw may still be running
            self._draws.clear()
            self._generation = self._sampler.tables.generation
        if num_rows not in self._draws:
            size = StepSize(num_rows, num_rows, has_prompts=False)
            tensors = self._buffers.tensors(size)
            self._draws[num_rows] = self._recorded(size, partial(self._run_draw, tensors))
        return self._draws[num_rows]

    def _top(self, num_rows: int, count: int) -> Recording[TopTensors]:
        if (num_rows, count) not in self._tops:
            size = StepSize(self._sizes.draws[-1], self._sizes.draws[-1], has_prompts=False)
            self._tops[num_rows, count] = self._recorded(size, partial(self._run_top, num_rows, count))
        return self._tops[num_rows, count]

    def _recorded(self, size: StepSize, run: Callable[[], T]) -> Recording[T]:
        """Records a part of a step of this size. All rows are padding meanwhile, so no state changes."""
        recording = Recording(run)
        if self._stream is not None:
            if self._memory is None:
                self._memory = torch.cuda.graph_pool_handle()
            self._buffers.fill(NO_STEP, size)
            recording.capture(self._stream, self._memory)
        return recording

    def _run_forward(self, tensors: StepTensors) -> None:
        rows, last_token = tensors.rows, self._sampler.tables.last_token
        # Padding rows, with slot -1, read the last row of the tables.
        if tensors.token_ids is None:
            token_ids = last_token[rows.slot_index.long()]
        else:
            sampled_last = last_token[rows.slot_index[rows.token_rows.long()].long()]
            token_ids = torch.where(tensors.token_ids < 0, sampled_last, tensors.token_ids.long())
        hidden = self._model.forward(token_ids, cast(Rows, rows), self._pool.layers)
        if tensors.last_token_index is not None:
            hidden = hidden[tensors.last_token_index.long()]
        self._model.logits(hidden, out=self._logits[: len(tensors.sampled_slot)])

    def _run_draw(self, tensors: StepTensors) -> None:
        count = len(tensors.sampled_slot)
        token_ids, logprobs = self._sampler.draw(self._logits[:count], tensors.sampled_slot)
        self._token_ids[:count].copy_(token_ids)
        self._logprobs[:count].copy_(logprobs)

    def _run_top(self, num_rows: int, count: int) -> TopTensors:
        parts = [
            self._sampler.top(self._logits, rows.long(), self._token_ids, self._logprobs, count)
            for rows in torch.split(self._buffers.top_rows[:num_rows], TOP_ROWS_AT_ONCE)
        ]
        return TopTensors(*map(torch.cat, zip(*parts, strict=True)))


class Recording(Generic[T]):
    """A part of a step: captured as a CUDA graph, then replayed; or run each time where there is no CUDA device.

    Args:
        run: launches the part. It reads and writes tensors at fixed addresses.
    """

    def __init__(self, run: Callable[[], T]) -> None:
        self._run = run
        self._captured: tuple[torch.cuda.CUDAGraph, T] | None = None

    def capture(self, stream: torch.cuda.Stream, memory: Any) -> None:
        """Records the part.

        Args:
            stream: runs the warm-up and the recording. Libraries allocate a workspace for each stream when they first
                run on it; the warm-up on the same stream makes them do that before the recording.
            memory: handle of the memory pool that all recordings share.
        """
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        # If a recording fails, torch does not restore the current stream; this block does.
        with torch.cuda.stream(stream):
            self._run()  # compiles kernels and lets libraries allocate
            # "thread_local": calls of other threads that a recording forbids, such as an allocation, must not end it.
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
                results = self._run()
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        self._captured = graph, results

    def launch(self) -> T:
        """Launches the part. Its results are overwritten by later launches, on the device."""
        if self._captured is None:
            return self._run()
        graph, results = self._captured
        graph.replay()
        return results
