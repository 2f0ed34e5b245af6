"""The step runner: launches one step (forward pass, scores and draw), recorded or op by op."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..models.model import Model
from ..transfer import Uploader
from .launched_step import Scores, StepResults
from .logprobs import TopLogprobs
from .recorded_decode import RecordedDecode
from .recorded_sizes import TOP_COUNTS
from .recordings import Recordings
from .sampler import Sampled, Sampler
from .scheduler import Scheduler, StepPlan
from .state_pool import StatePool
from .stats import Clock, EngineStats
from .step_input import PackedStep, build, pack

SCORES, MANY = "scores tokens", f"returns more than {TOP_COUNTS[-1]} most likely tokens"


class StepRunner:
    """Launches a step as a recorded step where there is a recording for it, else op by op.

    Not recorded are steps that score tokens, whose number differs from step to step, and steps in which a row returns
    more of the most likely tokens than `recorded_sizes.TOP_COUNTS` has.

    Args:
        recordings: None if steps are not recorded.
    """

    def __init__(self, eager: EagerStep, recordings: Recordings | None, sampler: Sampler, stats: EngineStats) -> None:
        self._eager = eager
        self._recordings = recordings
        self._sampler = sampler
        self._stats = stats

    @classmethod
    def of(
        cls,
        model: Model,
        pool: StatePool,
        sampler: Sampler,
        uploader: Uploader,
        stats: EngineStats,
        times_forward: bool,
        recorded_tokens: int | None,
    ) -> StepRunner:
        """Makes a step runner.

        Args:
            times_forward: as for `EagerStep`.
            recorded_tokens: tokens of the largest step that is recorded; None if steps are not recorded.
        """
        eager = EagerStep(model, pool, sampler, uploader, stats, times_forward)
        recordings = None
        if recorded_tokens is not None:
            recordings = Recordings(model, pool, sampler, uploader, eager.logits, recorded_tokens)
        return cls(eager, recordings, sampler, stats)

    def prepare(self) -> None:
        """Records all steps, at the first call."""
        if self._recordings is not None:
            self._recordings.record_all()

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Launches the plan's step."""
        stats, clock = self._stats, Clock()
        step = pack(plan, scheduler, self._sampler.returns_logprobs)
        stats.schedule_seconds += clock.lap()
        if self._recordings is None:
            return self._eager.run(step)
        if reason := self._obstacle(step):
            stats.unrecorded_steps[reason] += 1
            return self._eager.run(step)
        slots = step.sampled_slots
        self._sampler.reserve(slots)
        size = self._recordings.launch_forward(step)
        stats.model_seconds += clock.lap()
        self._sampler.constrain(slots)
        clock.lap()  # the sampler counts this time
        results = self._recordings.launch_draw(step, size)
        stats.recorded_steps += 1
        stats.model_seconds += clock.lap()
        return results

    def _obstacle(self, step: PackedStep) -> str:
        """Why a step is not recorded; empty if it is."""
        if step.scored:
            return SCORES
        return MANY if self._sampler.most_asked(step.sampled_slots[step.top_rows]) > TOP_COUNTS[-1] else ""


class EagerStep:
    """Launches a step of any shape: op by op, or on a CPU with the recording of a decode step.

    Args:
        times_forward: the model's call returns when the forward pass is done (a CPU), so that the call can be timed as
            the forward pass.

    Attributes:
        logits: [P, V] float32, the buffer of all steps' logits.
    """

    def __init__(
        self,
        model: Model,
        pool: StatePool,
        sampler: Sampler,
        uploader: Uploader,
        stats: EngineStats,
        times_forward: bool,
    ) -> None:
        self._model, self._pool, self._sampler = model, pool, sampler
        self._uploader = uploader
        self._stats = stats
        self._times_forward = times_forward
        # One buffer for all steps: allocating tens of megabytes in each step costs more than filling them.
        self.logits = torch.empty(pool.num_slots, model.sizes["V"], dtype=torch.float32, device=model.device)
        self._decode = RecordedDecode.of(model, pool, self.logits)

    def run(self, packed: PackedStep) -> StepResults:
        """Launches a step."""
        if self._decode is not None and self._decode.serves(packed):
            return self._run_decode(packed, self._decode)
        stats, clock = self._stats, Clock()
        step = build(packed, self._sampler.tables.last_token, self._uploader)
        stats.schedule_seconds += clock.lap()
        with stats.timed_forward() if self._times_forward else nullcontext():
            hidden = self._model.forward(step.token_ids, step.rows, self._pool.layers)
        scores = Scores(step.scored, hidden, self._model) if step.scored is not None else None
        slots = packed.sampled_slots
        if not len(slots):
            stats.model_seconds += clock.lap()
            return StepResults(slots, None, scores)
        if step.sampled_index is not None:
            hidden = self._model.ops.take_rows(hidden, step.sampled_index)
        logits = self._model.logits(hidden, out=self.logits[: len(slots)])
        stats.model_seconds += clock.lap()
        return StepResults(slots, self._draw(packed, logits, step.slot_index, step.top_index), scores)

    def _run_decode(self, packed: PackedStep, decode: RecordedDecode) -> StepResults:
        stats, clock = self._stats, Clock()
        slot_index = decode.fill(packed, self._sampler.tables.last_token)
        stats.schedule_seconds += clock.lap()
        logits = decode.run(packed)
        stats.model_seconds += clock.lap()
        top_index = torch.from_numpy(packed.top_rows)
        return StepResults(packed.slots, self._draw(packed, logits, slot_index, top_index), None)

    def _draw(self, packed: PackedStep, logits: Tensor, slot_index: Tensor, top_index: Tensor) -> Sampled:
        """Samples the next tokens.

        Args:
            logits: [n, V].
            slot_index: [n] int32: slots of the rows that sample a token.
            top_index: [m] int64: those of the n rows that return the most likely tokens.
        """
        slots, clock = packed.sampled_slots, Clock()
        self._sampler.reserve(slots)
        self._sampler.constrain(slots)
        clock.lap()  # the sampler counts this time
        drawn = self._sampler.draw(logits, slot_index)
        top = None
        if len(packed.top_rows):
            count = self._sampler.most_asked(slots[packed.top_rows])
            top = TopLogprobs(self._sampler.top(logits, top_index, *drawn, count))
        sampled = self._sampler.copy_to_host(slots, *drawn, None, packed.top_rows, top)
        self._stats.sample_seconds += clock.lap()
        return sampled
