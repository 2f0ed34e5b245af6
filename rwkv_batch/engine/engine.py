"""Continuous batching: requests in, completions out, in the order they finish.

The engine knows token ids only: no text, no files. It pulls the next requests when a slot is free, so memory is
bounded by the slots, whatever the number of requests.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CapacityError
from ..models.current import current_device
from ..models.model import Model
from ..models.upload import upload
from .decode_graph import DecodeGraphs
from .in_flight import InFlight, Scores
from .ledger import Ledger
from .out_of_memory import reason_of_out_of_memory
from .prefix import Prefix, plan_prefixes
from .request import Completion, Request
from .sampler import Sampled, Sampler
from .scheduler import Plan, Scheduler
from .sequence import Sequence
from .slot_tables import Vocabulary
from .snapshots import Snapshots
from .source import Batch, Pulled, Source
from .state_pool import StatePool, pool_parts
from .stats import EngineStats
from .step_input import StepInput, build
from .thread_switching import quick_thread_switches

logger = logging.getLogger(__name__)


class Engine:
    """Runs one model over any number of requests.

    A step is launched, and its results are taken in, by the same call; or, running ahead, only after the next step has
    been launched: the device never waits for the host, which meanwhile books tokens and looks for stop strings. A
    sequence that turns out to have ended has then run for one step too many, whose token is dropped.

    Args:
        max_batch_size: slots; sequences that run at the same time.
        max_batch_tokens: tokens of one step, prompts and decode rows together.
        init_state: a state file that every sequence starts from; None takes the checkpoint's own.
        prefix_sharing: compute prefixes that several rows share once. Samples of one row always share theirs.
        prefix_host_bytes: host memory for states of shared prefixes, when there are more than slots.
        run_ahead: None does so where the device has a queue of its own.
        decode_graphs: record decode steps and replay them; None does so on a CUDA device where Triton serves every op
            of the model and `sample`, and where the layers are not placed apart.
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
        prefix_host_bytes: int = 0,
        run_ahead: bool | None = None,
        decode_graphs: bool | None = None,
    ) -> None:
        self.model = model
        self._vocabulary = vocabulary
        is_cuda = model.device.type == "cuda"
        self._run_ahead = is_cuda if run_ahead is None else run_ahead
        can_record = is_cuda and model.pipeline is None and model.ops.can_be_recorded
        self._uses_graphs = can_record if decode_graphs is None else decode_graphs
        self.scheduler = Scheduler(max_batch_size, max_batch_tokens)
        self.stats = EngineStats(max_batch_size, max_batch_tokens)
        self._pool_parts = pool_parts(model.file, model.placement, init_state)
        self._allocate(max_batch_size)
        self._prefix_sharing = prefix_sharing
        self.snapshots = Snapshots(max_batch_size, prefix_host_bytes // self.pool.host_record_bytes)
        self._outbox: list[Completion] = []
        self._num_waiting = 0  # requests that have not started
        self._is_serving = False
        # Batches of requests among which shared prefixes are looked for.
        self.window = max(4 * max_batch_size, 256)

    def _allocate(self, num_slots: int) -> None:
        """Everything that has a place for each slot. With 0 slots, what was there before is freed."""
        device = self.model.device
        self._in_flight: deque[InFlight] = deque()
        self._graphs: DecodeGraphs | None = None
        with current_device(device):
            self.pool = StatePool(self._pool_parts, num_slots)
            self.ledger = Ledger(num_slots)
            self.sampler = Sampler(num_slots, self._vocabulary, device, self.model.ops)
            # Allocating tens of megabytes in every step would cost more than filling them.
            self._logits = torch.empty(num_slots, self.model.sizes["V"], device=device)
            if self._uses_graphs:
                self._graphs = DecodeGraphs(self.model, self.pool, self.sampler)

    @torch.inference_mode()
    def generate(self, requests: Iterable[Batch] | Source) -> Iterator[Completion]:
        """Complete every request. A completion among the requests passes straight through.

        Requests are pulled in windows, within which shared prefixes are found; a list of requests stays together.
        Closing the iterator early frees everything that was running.

        Raises:
            RuntimeError: another iterator of this engine is still open.
            CapacityError: a single token of a single sequence does not fit into memory.
        """
        if self._is_serving:
            raise RuntimeError("this engine is serving another iterator; finish or close that one first")
        if not self.pool.num_slots:
            raise CapacityError("this engine has run out of memory and has no slots left; make another one")
        self._is_serving = True
        source = requests if isinstance(requests, Source) else Pulled(requests)
        try:
            with quick_thread_switches():
                while True:
                    # Not around the results: whoever takes them keeps its own current device.
                    with current_device(self.model.device):
                        self._admit(source)
                        if not self.scheduler.is_idle:
                            self._within_memory(self.step)
                    yield from self._take_finished()
                    if self.scheduler.is_idle and source.is_ended and not self._outbox:
                        return
        finally:
            self._abandon()
            self._is_serving = False

    def step(self) -> None:
        """Launch a forward pass, and take in results."""
        with self._timed(whole_step=True):
            if self.sampler.waits_for_tokens:
                self._take_in(keep=0)
            launched = self.scheduler.has_work
            if launched:
                self._in_flight.append(self._launch())
            may_run_ahead = self._run_ahead and launched and not self.sampler.waits_for_tokens
            self._take_in(keep=1 if may_run_ahead else 0)

    def check_integrity(self) -> None:
        """Assert that every slot is free or belongs to exactly one running sequence."""
        self.pool.check_integrity(sequence.slot for sequence in self.scheduler.running)

    def _launch(self) -> InFlight:
        clock = self.stats.clock()
        plan = self.scheduler.plan()
        self.stats.count(plan, self.scheduler.num_running)
        scores: Scores | None = None
        sampled: Sampled | None
        if self._graphs is not None and not plan.chunks and not self.sampler.wants_alternatives:
            clock.lap("schedule_seconds")
            self.stats.recorded_steps += 1
            sampled = self._graphs(plan.decoding, self.scheduler.position[plan.decoding])
            clock.lap("model_seconds")
        else:
            step_input = build(plan, self.scheduler.position, self.sampler.tables.last_token)
            clock.lap("schedule_seconds")
            with self._timed(whole_step=False):
                hidden = self.model.forward(step_input.token_ids, step_input.rows, self.pool.layers)
            scores = Scores(step_input.scored, hidden, self.model) if step_input.scored else None
            logits = self._sampled_logits(step_input, hidden)
            clock.lap("model_seconds")
            sampled = self._sample(step_input, logits) if logits is not None else None
        clock.lap("sample_seconds")
        in_flight = InFlight(sampled, scores, self._advance(plan))
        if sampled is not None:
            in_flight.entries = self.ledger.entries(sampled.slots)
            self.stats.completion_tokens += len(sampled.slots)
        clock.lap("commit_seconds")
        return in_flight

    def _timed(self, whole_step: bool) -> AbstractContextManager[None]:
        """Times forward passes: the model's call where it returns when it is done, the step where that runs ahead."""
        return self.stats.timed_forward() if whole_step == self._run_ahead else nullcontext()

    def _take_in(self, keep: int) -> None:
        """Book the results of all launched steps but the latest `keep`."""
        while len(self._in_flight) > keep:
            clock = self.stats.clock()
            step = self._in_flight[0]
            finished = list(step.scored)
            if step.scores is not None:
                for sequence, scores in step.scores.read():
                    self.ledger.completion(sequence).prompt_scores.append(scores)
            if step.sampled is not None:
                tokens = step.sampled.read()
                clock.lap("wait_seconds")
                finished += self.ledger.record(step.sampled.slots, step.entries, *tokens)
            for sequence in finished:
                self._outbox.append(self.ledger.close(sequence))
                self._release(sequence)
            self._in_flight.popleft()
            clock.lap("commit_seconds")

    def _within_memory(self, action: Callable[[], None]) -> None:
        """Run a step, or start a sequence. Where memory is used up, everything that runs starts again in fewer slots.

        Raises:
            CapacityError: a single token of a single sequence does not fit.
        """
        handled = sys.exc_info()[1]  # the caller may be handling an error of its own
        try:
            action()
            return
        except (RuntimeError, MemoryError) as error:
            reason = reason_of_out_of_memory(error, handled)
            if reason is None:
                raise
        # Not in the handler above: there the exception keeps the failed step's tensors.
        num_slots, num_tokens = self.pool.num_slots, self.scheduler.max_batch_tokens
        while reason is not None:
            if (num_slots, num_tokens) == (1, 1):
                raise CapacityError(
                    f"out of memory with a single token in a step: {reason}. Use a smaller model or dtype"
                )
            num_slots = max(num_slots // 2, 1)
            num_tokens = max(num_tokens // 2, num_slots)
            logger.warning("out of memory: %d slots, %d tokens a step from now on (%s)", num_slots, num_tokens, reason)
            reason = self._restart(num_slots, num_tokens, handled)

    def _restart(self, num_slots: int, num_tokens: int, handled: BaseException | None) -> str | None:
        """Go on with fewer slots and tokens. What was running starts again, and draws the same tokens.

        Returns:
            None; or why these slots do not fit, and then there are none.
        """
        for sequence in self.scheduler.running:
            self._num_waiting += sequence.request is not None
            if isinstance(sequence.work, Prefix):
                self.snapshots.drop(sequence.work)
        self.snapshots.shrink(num_slots)
        self.scheduler = self.scheduler.restart(num_slots, num_tokens)
        try:
            self._allocate(0)
            torch.cuda.empty_cache()  # does nothing without a CUDA device
            self._allocate(num_slots)
        except (RuntimeError, MemoryError) as error:
            reason = reason_of_out_of_memory(error, handled)
            if reason is None:
                raise
            self.pool = StatePool(self._pool_parts, 0)
            return reason
        self.stats.max_batch_size, self.stats.max_batch_tokens = num_slots, num_tokens
        return None

    def _take_finished(self) -> list[Completion]:
        finished, self._outbox = self._outbox, []
        return finished

    def _admit(self, source: Source) -> None:
        """Give every free slot to a sequence, as far as there are any."""
        while self.pool.num_free:
            self._refill(source)
            if not self.scheduler.waiting or not self._may_start(self.scheduler.waiting[0]):
                return
            sequence = self.scheduler.next_waiting()
            if isinstance(sequence.work, Prefix):
                if not self.snapshots.has_room:
                    self._take_apart(sequence.work, sequence.parent)
                    continue
                self.snapshots.reserve()
            sequence.slot = self.pool.allocate(self.snapshots.take(sequence.parent) if sequence.parent else None)
            self.scheduler.start(sequence)
            if sequence.request is not None:
                self._num_waiting -= 1
                self._within_memory(partial(self._open, sequence, sequence.request))

    def _open(self, sequence: Sequence, request: Request) -> None:
        """The slot of a sequence gets the request's settings."""
        self.stats.requested_tokens += len(sequence.prompt)
        self.ledger.open(sequence)
        if sequence.max_tokens:
            constraint = request.new_constraint() if request.new_constraint else None
            self.sampler.assign(sequence.slot, request, constraint)

    def _may_start(self, sequence: Sequence) -> bool:
        """Prefixes start late: once steps have tokens to spare, and those being computed may still free a place."""
        if not isinstance(sequence.work, Prefix):
            return True
        waits_for_place = not self.snapshots.has_room and self.snapshots.num_reserved > 0
        return self.scheduler.has_tokens_to_spare and not waits_for_place

    def _take_apart(self, prefix: Prefix, parent: Prefix | None) -> None:
        """There is no place for the prefix's state, and none will be free: every child computes its tokens itself."""
        works = [*prefix.children, *([prefix.request] if prefix.request else [])]
        if parent is not None:
            self.snapshots.expect(parent, len(works) - 1)
        self.scheduler.add_first(Sequence(work, parent) for work in works)

    def _refill(self, source: Source) -> None:
        """Queue the next window of requests while less than half a window waits: at the end, short ones fill slots.

        The engine waits for its source only where it is idle. An incomplete window is taken only where nobody waits.
        """
        if source.is_ended or self._num_waiting >= self.window // 2:
            return
        if self.scheduler.waiting and not source.has_ready(self.window):
            return
        batches = source.take(self.window, wait=self.scheduler.is_idle and not self._outbox)
        window = [item for batch in batches for item in (batch if isinstance(batch, list) else [batch])]
        self._outbox += [item for item in window if isinstance(item, Completion)]
        requests = [item for item in window if isinstance(item, Request)]
        self._num_waiting += len(requests)
        self.scheduler.add(Sequence(work, None) for work in plan_prefixes(requests, self._prefix_sharing))
        if source.is_ended:
            self.scheduler.sort_waiting()

    def _sampled_logits(self, step_input: StepInput, hidden: Tensor) -> Tensor | None:
        """[n, V] float32 for the n rows that get a token."""
        index = step_input.sampled_index
        if not len(index):
            return None
        if len(index) < len(hidden):
            hidden = hidden[upload(index, torch.int64, hidden.device)]
        return self.model.logits(hidden, out=self._logits[: len(hidden)])

    def _sample(self, step_input: StepInput, logits: Tensor) -> Sampled:
        slots = step_input.sampled_slots
        self.sampler.prepare(slots)
        slot_index = upload(slots, torch.int32, logits.device)
        return self.sampler.send(slots, *self.sampler.draw(logits, slot_index), logits)

    def _advance(self, plan: Plan) -> list[Sequence]:
        """What the plan's step has made true. Returns the sequences that wait for nothing but scores."""
        complete = self.scheduler.advance(plan)
        self._publish(complete)
        scored = []
        for sequence in complete:
            if sequence.request is None:
                self._release(sequence)
            else:
                sequence.work = sequence.request  # should it start again, its children have what they need
                scored.append(sequence)
        return scored

    def _publish(self, complete: list[Sequence]) -> None:
        """The prefixes among these are computed: their children can start from their states.

        All states are copied before any child is queued, as copying may run out of memory.
        """
        prefixes = [(sequence.work, sequence.slot) for sequence in complete if isinstance(sequence.work, Prefix)]
        for prefix, slot in prefixes:
            self.snapshots.keep(prefix, self.pool.record(slot))
        for prefix, _ in prefixes:
            self.scheduler.add_first(Sequence(work, prefix) for work in prefix.children)

    def _release(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self.sampler.release(sequence.slot)
        self.pool.free(sequence.slot)

    def _abandon(self) -> None:
        self._in_flight.clear()
        for sequence in self.scheduler.running:
            self.ledger.drop(sequence)
            self._release(sequence)
        self.scheduler = Scheduler(self.pool.num_slots, self.scheduler.max_batch_tokens)
        self.snapshots.clear()
        self._outbox, self._num_waiting = [], 0
