"""Continuous batching: requests in, completions out, in the order they finish.

The engine knows token ids only: no text, no files. It pulls the next requests when a slot is free, so memory is
bounded by the slots, whatever the number of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CapacityError
from ..models.model import Model
from .logprobs import score
from .prefix import Prefix, plan_prefixes
from .request import Completion, Request
from .sampler import Sampled, Sampler, Vocabulary
from .scheduler import PlannedRow, Scheduler
from .sequence import Sequence
from .source import Batch, Pulled, Source
from .state_pool import StateLayout, StatePool
from .stats import EngineStats
from .step_input import StepInput, build

logger = logging.getLogger(__name__)


class Engine:
    """Runs one model over any number of requests.

    Args:
        max_batch_size: slots; sequences that run at the same time.
        max_batch_tokens: tokens of one step, prompts and decode rows together.
        init_state: a state file that every sequence starts from; None takes the checkpoint's own.
        prefix_sharing: compute prefixes that several rows share once. Samples of one row always share theirs.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        init_state: str | Path | None = None,
        prefix_sharing: bool = True,
    ) -> None:
        self.model = model
        self._vocabulary = vocabulary
        layout = StateLayout(model.file.state_fields(model.placement), model.sizes["L"])
        record = layout.initial_record(model.file.initial_states(init_state), model.device)
        self.pool = StatePool(layout, max_batch_size, record)
        self.scheduler = Scheduler(max_batch_tokens)
        self.sampler = Sampler(max_batch_size, vocabulary, model.device, model.ops)
        self.stats = EngineStats(max_batch_size)
        # Allocating tens of megabytes in every step would cost more than filling them.
        self._logits = torch.empty(max_batch_size, model.sizes["V"], device=model.device)
        self._prefix_sharing = prefix_sharing
        self._passed: list[Completion] = []
        self._is_serving = False
        # Batches of requests among which shared prefixes are looked for.
        self.window = max(4 * max_batch_size, 256)

    @torch.inference_mode()
    def generate(self, requests: Iterable[Batch] | Source) -> Iterator[Completion]:
        """Complete every request. A completion among the requests passes straight through.

        Requests are pulled in windows, within which shared prefixes are found; a list of requests stays together.
        Closing the iterator early frees everything that was running.

        Raises:
            RuntimeError: another iterator of this engine is still open.
        """
        if self._is_serving:
            raise RuntimeError("this engine is serving another iterator; finish or close that one first")
        self._is_serving = True
        source = requests if isinstance(requests, Source) else Pulled(requests)
        try:
            while True:
                self._admit(source)
                yield from self._take_passed()
                if not self.scheduler.is_idle:
                    yield from self._step_within_memory()
                elif source.is_ended:
                    return
        finally:
            self._abandon()
            self._is_serving = False

    def step(self) -> list[Completion]:
        """One forward pass; returns what has finished in it."""
        clock = self.stats.clock()
        num_decoding = len(self.scheduler.decoding)
        plan = self.scheduler.plan()
        step_input = build(plan, self.model.device)
        self.stats.count(step_input, num_decoding)
        clock.lap("schedule_seconds")
        hidden = self.model.forward(step_input.token_ids, step_input.rows, self.pool.layers)
        logits = self._sampled_logits(step_input, hidden)
        self._score(step_input, hidden)
        clock.lap("model_seconds")
        sampled = self._sample(step_input, logits)
        clock.lap("sample_seconds")
        finished = self._commit(plan, step_input, sampled)
        clock.lap("commit_seconds")
        return finished

    def check_integrity(self) -> None:
        """Assert that every slot is free or belongs to exactly one running sequence."""
        self.pool.check_integrity(sequence.slot for sequence in self.scheduler.running)

    def _step_within_memory(self) -> list[Completion]:
        try:
            return self.step()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        self._halve(reason)
        return []

    def _halve(self, reason: str) -> None:
        """Go on with half the slots and tokens. What was running starts again, and draws the same tokens."""
        before = self.pool.num_slots, self.scheduler.max_batch_tokens
        if before == (1, 1):
            raise CapacityError(f"out of memory with a single token in a step: {reason}. Use a smaller model or dtype")
        num_slots = max(before[0] // 2, 1)
        num_tokens = max(before[1] // 2, num_slots)
        logger.warning("out of memory: %d slots, %d tokens a step from now on (%s)", num_slots, num_tokens, reason)
        self.scheduler.restart(num_tokens)
        self._logits = self._logits[:num_slots].clone()
        self.pool = self.pool.resized(num_slots)
        self.sampler = Sampler(num_slots, self._vocabulary, self.model.device, self.model.ops)
        self.stats.max_batch_size = num_slots

    def _take_passed(self) -> list[Completion]:
        passed, self._passed = self._passed, []
        return passed

    def _admit(self, source: Source) -> None:
        """Give every free slot to a sequence, as far as there are any."""
        while self.pool.num_free:
            if not self.scheduler.waiting:
                self._refill(source)
            if not self.scheduler.waiting:
                return
            sequence = self.scheduler.next_waiting()
            sequence.slot = self.pool.allocate(sequence.parent.take_record() if sequence.parent else None)
            if isinstance(sequence.work, Request):
                new_constraint = sequence.work.new_constraint
                self.sampler.assign(sequence.slot, sequence.work, new_constraint() if new_constraint else None)
            self.scheduler.start(sequence)

    def _refill(self, source: Source) -> None:
        """Queue the next window of requests. Only an idle engine waits for one."""
        batches = source.take(self.window, wait=self.scheduler.is_idle and not self._passed)
        window = [item for batch in batches for item in (batch if isinstance(batch, list) else [batch])]
        self._passed += [item for item in window if isinstance(item, Completion)]
        requests = [item for item in window if isinstance(item, Request)]
        self.stats.requested_tokens += sum(len(request.prompt_token_ids) for request in requests)
        self.scheduler.add(Sequence(work, None) for work in plan_prefixes(requests, self._prefix_sharing))

    def _sampled_logits(self, step_input: StepInput, hidden: Tensor) -> Tensor | None:
        """[n, V] float32 for the n rows that get a token."""
        if not step_input.sampled:
            return None
        if len(step_input.sampled) < len(hidden):
            hidden = hidden[[index for _, index in step_input.sampled]]
        return self.model.logits(hidden, out=self._logits[: len(hidden)])

    def _sample(self, step_input: StepInput, logits: Tensor | None) -> Sampled | None:
        if logits is None:
            return None
        return self.sampler.sample(logits, [sequence.slot for sequence, _ in step_input.sampled])

    def _score(self, step_input: StepInput, hidden: Tensor) -> None:
        scored = step_input.scored
        if not scored:
            return
        found = score(
            hidden,
            [token.packed_index for token in scored],
            [token.target for token in scored],
            [token.num_alternatives for token in scored],
            self.model.logits,
        )
        for token, result in zip(scored, found, strict=True):
            assert token.sequence.completion is not None
            token.sequence.completion.prompt_scores.append(result)

    def _commit(self, plan: list[PlannedRow], step_input: StepInput, sampled: Sampled | None) -> list[Completion]:
        done: list[Sequence] = []
        prefixes: list[Sequence] = []
        for sequence, num_tokens in plan:
            if sequence.is_decoding:
                continue
            sequence.num_computed += num_tokens
            if not sequence.is_decoding:
                continue
            if isinstance(sequence.work, Prefix):
                prefixes.append(sequence)
            elif sequence.work.params.max_tokens == 0:
                done.append(sequence)
        if sampled is not None:
            rows = zip(step_input.sampled, sampled.token_ids, sampled.logprobs, sampled.alternatives, strict=True)
            for (sequence, _), token_id, logprob, alternatives in rows:
                if alternatives is not None and sequence.completion is not None:
                    sequence.completion.logprobs.append(alternatives)
                if sequence.append(token_id, logprob):
                    done.append(sequence)
        self._publish(prefixes)
        for sequence in done + prefixes:
            self.pool.free(sequence.slot)
        self.scheduler.settle({id(sequence) for sequence in done + prefixes})
        return [sequence.completion for sequence in done + prefixes if sequence.completion is not None]

    def _publish(self, computed: list[Sequence]) -> None:
        """These prefixes are computed: their children can start from their states.

        All states are copied before any child is queued, as copying may run out of memory.
        """
        records = [self.pool.snapshot(sequence.slot) for sequence in computed]
        for sequence, record in zip(computed, records, strict=True):
            prefix = sequence.work
            assert isinstance(prefix, Prefix)
            prefix.record, prefix.num_waiting = record, len(prefix.children)
            self.scheduler.add_first(Sequence(work, prefix) for work in prefix.children)

    def _abandon(self) -> None:
        for sequence in self.scheduler.running:
            self.pool.free(sequence.slot)
        self.scheduler = Scheduler(self.scheduler.max_batch_tokens)
        self._passed = []


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class of its own for a device, and only a sentence for a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
