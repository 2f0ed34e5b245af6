"""The step runner: launches one step (forward pass, scores and draw), recorded or op by op."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..models.model import Model
from ..transfer import Uploader
from .decode_graph import DecodeGraphs, StepShape
from .launched_step import Scores, StepResults
from .sampler import Sampler
from .scheduler import Scheduler, StepPlan
from .state_pool import StatePool
from .stats import Clock, EngineStats
from .step_input import StepInput, build


class StepRunner:
    """Launches a step as a recorded step if its shape allows that, else op by op.

    Args:
        graphs: recorded steps; None if steps are not recorded.
    """

    def __init__(self, eager: EagerStep, graphs: DecodeGraphs | None, sampler: Sampler, stats: EngineStats) -> None:
        self._eager = eager
        self._graphs = graphs
        self._sampler = sampler
        self._stats = stats

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Launches the plan's step."""
        if self._graphs is None or not (shape := self._shape(plan)).is_recorded:
            return self._eager.run(plan, scheduler)
        stats, clock, slots = self._stats, Clock(), plan.decoding
        self._sampler.reserve(slots)
        step = self._graphs.find(shape)
        step.launch_forward(slots, scheduler.position[slots], scheduler.deferred(slots))
        stats.model_seconds += clock.lap()
        self._sampler.constrain(slots)
        clock.lap()  # the sampler counts this time
        results = step.launch_draw(slots)
        stats.recorded_steps += 1
        stats.model_seconds += clock.lap()
        return results

    def _shape(self, plan: StepPlan) -> StepShape:
        features = set()
        if len(plan.prefilling):
            features.add("prompts")
        if self._sampler.returns_logprobs[plan.decoding].any():
            features.add("logprobs")
        return StepShape(plan.num_sequences, len(plan.decoding) + plan.num_prompt_tokens, frozenset(features))


class EagerStep:
    """Launches a step of any shape, op by op.

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
        self.logits = torch.empty(pool.num_slots, model.sizes["V"], device=model.device)

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Launches the plan's step."""
        stats, clock = self._stats, Clock()
        step = build(plan, scheduler, self._sampler.tables.last_token, self._uploader, self._sampler.returns_logprobs)
        stats.schedule_seconds += clock.lap()
        with stats.timed_forward() if self._times_forward else nullcontext():
            hidden = self._model.forward(step.token_ids, step.rows, self._pool.layers)
        scores = Scores(step.scored, hidden, self._model) if step.scored is not None else None
        logits = self._sampled_logits(step, hidden)
        stats.model_seconds += clock.lap()
        if logits is None:
            return StepResults(step.sampled_slots, None, scores)
        self._sampler.reserve(step.sampled_slots)
        self._sampler.constrain(step.sampled_slots)
        clock.lap()  # the sampler counts this time
        drawn = self._sampler.draw(logits, step.slot_index)
        sampled = self._sampler.copy_to_host(step.sampled_slots, *drawn, logits, step.top_rows, step.top_index)
        stats.sample_seconds += clock.lap()
        return StepResults(step.sampled_slots, sampled, scores)

    def _sampled_logits(self, step: StepInput, hidden: Tensor) -> Tensor | None:
        """[n, V] float32 for the n rows that get a token."""
        count = len(step.sampled_slots)
        if not count:
            return None
        if step.sampled_index is not None:
            hidden = hidden[step.sampled_index]
        return self._model.logits(hidden, out=self.logits[:count])
