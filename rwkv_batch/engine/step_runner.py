"""Launches one step: its forward pass, its scores and its draw, recorded or op by op."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..models.model import Model
from ..transfer import Uploader
from .decode_graph import DecodeGraphs, StepShape
from .launched_step import Scores, StepResults
from .sampler import Sampled, Sampler
from .scheduler import Scheduler, StepPlan
from .state_pool import StatePool
from .stats import EngineStats
from .step_input import StepInput, build


class StepRunner:
    """Runs a step by what is made for its shape: a recorded step, or `EagerStep`.

    Args:
        graphs: recorded steps; None where none are used.
    """

    def __init__(self, eager: EagerStep, graphs: DecodeGraphs | None, sampler: Sampler, stats: EngineStats) -> None:
        self._eager = eager
        self._graphs = graphs
        self._sampler = sampler
        self._stats = stats

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Launch the plan's step."""
        if self._graphs is None or not (shape := self._shape(plan)).is_recorded:
            return self._eager.run(plan, scheduler)
        clock = self._stats.clock()
        self._sampler.prepare(plan.decoding)
        results = self._graphs.find(shape).run(plan, scheduler)
        self._stats.recorded_steps += 1
        clock.lap("model_seconds")
        return results

    def _shape(self, plan: StepPlan) -> StepShape:
        features = set()
        if len(plan.prefilling):
            features.add("prompts")
        if self._sampler.asks_logprobs[plan.decoding].any():
            features.add("logprobs")
        return StepShape(plan.num_sequences, len(plan.decoding) + plan.num_prompt_tokens, frozenset(features))


class EagerStep:
    """Runs a step of any shape, op by op.

    Args:
        times_forward: count the time of the model's call as that of the forward pass: where the call returns when the
            pass is done.
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
        # Allocating tens of megabytes in every step would cost more than filling them.
        self._logits = torch.empty(pool.num_slots, model.sizes["V"], device=model.device)

    def run(self, plan: StepPlan, scheduler: Scheduler) -> StepResults:
        """Launch the plan's step."""
        clock = self._stats.clock()
        step = build(plan, scheduler, self._sampler.tables.last_token, self._uploader, self._sampler.asks_logprobs)
        clock.lap("schedule_seconds")
        with self._stats.timed_forward() if self._times_forward else nullcontext():
            hidden = self._model.forward(step.token_ids, step.rows, self._pool.layers)
        scores = Scores(step.scored, hidden, self._model) if step.scored is not None else None
        logits = self._sampled_logits(step, hidden)
        clock.lap("model_seconds")
        sampled = self._sample(step, logits) if logits is not None else None
        clock.lap("sample_seconds")
        return StepResults(step.sampled_slots, sampled, scores)

    def _sampled_logits(self, step: StepInput, hidden: Tensor) -> Tensor | None:
        """[n, V] float32 for the n rows that get a token."""
        count = len(step.sampled_slots)
        if not count:
            return None
        if step.sampled_index is not None:
            hidden = hidden[step.sampled_index]
        return self._model.logits(hidden, out=self._logits[:count])

    def _sample(self, step: StepInput, logits: Tensor) -> Sampled:
        self._sampler.prepare(step.sampled_slots)
        drawn = self._sampler.draw(logits, step.slot_index)
        return self._sampler.copy_to_host(step.sampled_slots, *drawn, logits, step.top_rows, step.top_index)
