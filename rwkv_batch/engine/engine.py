"""Continuous batching: requests in, completions out, in the order they finish.

The engine knows token ids only: no text, no files. It pulls the next requests when a slot is free, so memory is
bounded by the slots, whatever the number of requests.
"""

from __future__ import annotations

import inspect
import logging
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..errors import CapacityError
from ..models.model import Model
from ..models.pipeline import current_device
from ..settings import LogprobsMode
from ..transfer import Uploader
from .admission import Admission, Admitted, Grouping, planning_window
from .booking import Booking, SampledRows
from .launched_step import LaunchedStep, StepResults
from .limits import EngineLimits
from .out_of_memory import reason_of_out_of_memory
from .request import Completion, StopMatcher
from .sampler import Sampler
from .scheduler import Scheduler, StepPlan
from .slot_tables import Vocabulary
from .snapshots import Snapshots
from .source import Source
from .state_pool import Record, StatePool, pool_parts
from .stats import Clock, EngineStats
from .step_runner import StepRunner
from .thread_switching import quick_thread_switches

__all__ = ["Engine", "EngineLimits"]

logger = logging.getLogger(__name__)

Steps = Generator[list[Completion], None, None]
_UNTIMED = nullcontext()


class Engine:
    """Runs one model over any number of requests.

    Results one step late: a CUDA device has a queue, and it is idle while the host books a step's tokens and looks for
    stop strings. Running ahead avoids that idle time: step n + 1 is launched before the results of step n are read. The
    sampled token stays on the device, where step n + 1 is fed it. The price: a sequence that has ended in step n still
    takes part in step n + 1, and that token is dropped. The mask of a constraint depends on the token before: where a
    row has one, the draw of step n + 1 waits for the tokens of step n. Its forward pass runs meanwhile.

    Args:
        init_state: a state file that every sequence starts from; None takes the checkpoint's own.
        prefix_sharing: compute prefixes that several rows share once. Samples of one row always share theirs.
        run_ahead: launch a step before the results of the step before are read; None does so on a CUDA device.
        record_steps: record steps at the first `run`, and replay them; None does so on a CUDA device where every op of
            a step can be recorded, and where no layer is placed on another device.
        new_stop_matcher: makes a stop matcher for a number of slots; None where no request has stop strings.
        logprobs_mode: which log-probabilities the sampled tokens have, see `LLM`. Processed ones are not recorded.
    """

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        limits: EngineLimits,
        *,
        init_state: str | Path | None = None,
        prefix_sharing: bool = True,
        run_ahead: bool | None = None,
        record_steps: bool | None = None,
        new_stop_matcher: Callable[[int], StopMatcher] | None = None,
        logprobs_mode: LogprobsMode = "raw_logprobs",
    ) -> None:
        self.model = model
        self._vocabulary = vocabulary
        self._new_stop_matcher = new_stop_matcher
        is_cuda = model.device.type == "cuda"
        self._run_ahead = is_cuda if run_ahead is None else run_ahead
        self._logprobs_mode = logprobs_mode
        can_record = is_cuda and model.pipeline is None and model.ops.can_be_recorded
        self._records_steps = can_record if record_steps is None else record_steps
        self._records_steps &= logprobs_mode == "raw_logprobs"
        num_slots = limits.max_batch_size
        self.stats = EngineStats(num_slots, limits.max_batch_tokens)
        self._uploader = Uploader(model.device)
        self._pool_parts = pool_parts(model.file, model.placement, init_state, limits.state_write_interval)
        self.scheduler = Scheduler(num_slots, limits.max_batch_tokens, limits.state_write_interval)
        self._num_slots = num_slots
        self._allocate(num_slots)
        snapshots = Snapshots(num_slots, limits.prefix_host_bytes // self.pool.host_record_bytes)
        grouping = Grouping(limits.admission_delay)
        self.admission = Admission(snapshots, planning_window(num_slots), prefix_sharing, grouping)
        self._outbox: list[Completion] = []
        self._aborted: deque[Any] = deque()
        self._serving: weakref.ref[Steps] | None = None
        self._is_damaged = False

    def _allocate(self, num_slots: int) -> None:
        """Makes everything that is indexed by slot. With 0 slots, this frees the memory of what was there before."""
        model = self.model
        self._in_flight: deque[LaunchedStep] = deque()
        self._runner: StepRunner = None  # type: ignore[assignment]  # frees what the former one holds
        with current_device(model.device):
            self.pool = StatePool(self._pool_parts, num_slots)
            self.booking = Booking(num_slots, self._new_stop_matcher)
            self.sampler = Sampler(
                num_slots, self._vocabulary, model.device, model.ops, self._uploader, self._logprobs_mode, self.stats
            )
            max_tokens = self.scheduler.max_batch_tokens if self._records_steps and num_slots else None
            self._runner = StepRunner.of(
                model, self.pool, self.sampler, self._uploader, self.stats, not self._run_ahead, max_tokens
            )

    @property
    def window(self) -> int:
        """Number of requests that are pulled at a time, and searched together for shared prefixes."""
        return self.admission.window

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of shared prefixes."""
        return self.admission.snapshots

    def generate(self, source: Source) -> Generator[Completion, None, None]:
        """Completes every request. Like `run`, but yields one completion at a time."""
        for finished in self.run(source):
            yield from finished

    def run(self, source: Source) -> Steps:
        """Completes every request. Yields a list after each step: the completions that the step has finished.

        Closing the iterator early drops the sequences that are running. After an exception the engine stays usable: the
        next call starts with empty slots.

        Raises:
            RuntimeError: another iterator of this engine is still open.
            CapacityError: a single token of a single sequence does not fit into memory.
        """
        own: list[weakref.ref[Steps]] = []  # the generator itself, for `_begin`: weakly, so that dropping it closes it
        steps = self._run(source, own)
        own.append(weakref.ref(steps))
        return steps

    @torch.inference_mode()
    def _run(self, source: Source, own: list[weakref.ref[Steps]]) -> Steps:
        # An exception, such as Ctrl-C, may come between any two lines. The pool, the scheduler, the booking and the
        # sampler may then disagree about a slot. No line has to prevent that: `_begin` marks the engine as damaged,
        # only an orderly end removes the mark, and the next `run` of a damaged engine allocates everything anew.
        self._begin(own[0])
        has_ended = False
        try:
            with quick_thread_switches():
                with current_device(self.model.device):
                    self._within_memory(lambda: self._runner.prepare())
                while not (self.scheduler.is_idle and source.is_ended):
                    # The `yield` stays outside: the caller keeps its own current device.
                    with current_device(self.model.device):
                        self._remove_aborted()
                        self._admit(source)
                        if not self.scheduler.is_idle:
                            self._within_memory(self.step)
                    yield self._take_finished()
            has_ended = True
        except GeneratorExit:  # closed between two steps
            has_ended = True
            raise
        finally:
            self._abandon()
            self._is_damaged = not has_ended

    def abort(self, key: Any) -> None:
        """Finishes the requests with this key before the next step with the tokens that they have. Any thread may call.

        Requests that the source has not given out yet are not affected.
        """
        self._aborted.append(key)

    def step(self) -> None:
        """Launches a step, then takes in the results that are due: its own, or those of the step before."""
        with self.stats.timed_forward() if self._run_ahead else _UNTIMED:
            launched = self.scheduler.has_work
            if launched:
                self._in_flight.append(self._launch())
            self._take_in(leave_in_flight=1 if self._run_ahead and launched else 0)

    def check_integrity(self) -> None:
        """Asserts that every slot is free or belongs to exactly one running sequence."""
        self.pool.check_integrity(sequence.slot for sequence in self.scheduler.running)

    def _begin(self, own: weakref.ref[Steps]) -> None:
        other = self._serving() if self._serving is not None else None
        if other is not None and inspect.getgeneratorstate(other) not in (inspect.GEN_CLOSED, inspect.GEN_CREATED):
            raise RuntimeError("this engine is serving another iterator; finish or close that one first")
        if not self._num_slots:
            raise CapacityError("this engine has run out of memory and has no slots left; make another engine")
        if self._is_damaged:
            self._rebuild()
        self._serving = own
        self._is_damaged = True  # until `_run` has ended without an exception

    def _rebuild(self) -> None:
        """Allocates everything that is indexed by slot anew, after an exception that may have left it inconsistent."""
        self._allocate(0)
        self._allocate(self._num_slots)
        self._abandon()

    def _admit(self, source: Source) -> None:
        """Gives the free slots to waiting sequences."""
        start = perf_counter()
        admitted = self.admission.fill(source, self.scheduler, self.pool.num_free, may_wait=not self._outbox)
        if admitted:
            for sequence, slot in zip(admitted, self.pool.allocate(len(admitted)), strict=True):
                sequence.sequence.slot = slot
            self.scheduler.start([each.sequence for each in admitted])
            self._within_memory(partial(self._open, admitted))
        self.stats.input_seconds = self.admission.wait_seconds
        self.stats.admit_seconds += perf_counter() - start

    def _open(self, admitted: list[Admitted]) -> None:
        """Sets the states and the sampling settings of these sequences' slots, in a fixed number of transfers."""
        groups: dict[int, tuple[Record | None, list[int]]] = {}
        for sequence, record in admitted:
            groups.setdefault(id(record), (record, []))[1].append(sequence.slot)
        slot_index = iter(self._uploader.send(*(np.array(slots, np.int64) for _, slots in groups.values())))
        for record, _ in groups.values():
            self.pool.fill(next(slot_index), record)
        started = [sequence for sequence, _ in admitted if sequence.request is not None]
        self.stats.requested_tokens += sum(len(sequence.prompt) for sequence in started)
        self.booking.open(started)
        sampled = [sequence for sequence in started if sequence.max_tokens]
        requests = [sequence.request for sequence in sampled if sequence.request is not None]
        self.sampler.assign([sequence.slot for sequence in sampled], requests)

    def _launch(self) -> LaunchedStep:
        stats, clock = self.stats, Clock()
        plan = self.scheduler.plan()
        stats.count(plan, self.scheduler.num_running)
        stats.schedule_seconds += clock.lap()
        results = self._runner.run(plan, self.scheduler)
        clock = Clock()
        launched = self._advance(plan, results)
        stats.completion_tokens += len(results.sampled_slots)
        stats.transfers = self._uploader.num_transfers
        stats.commit_seconds += clock.lap()
        return launched

    def _advance(self, plan: StepPlan, results: StepResults) -> LaunchedStep:
        """Brings the scheduler up to a step that has been launched, and notes to whom its results belong."""
        scheduler, booking = self.scheduler, self.booking
        complete = scheduler.advance(plan)
        self._publish(complete)
        sequences = [(slot, scheduler.sequence(slot)) for slot in complete.tolist()]
        without_request = np.array([slot for slot, sequence in sequences if sequence.request is None], np.int64)
        self._release(without_request)
        scored = np.array([slot for slot, sequence in sequences if sequence.request is not None], np.int64)
        slots = results.sampled_slots
        rows = SampledRows(slots, booking.owners(slots), scheduler.position[slots] - scheduler.prompt_length[slots])
        parts = results.scores.parts if results.scores is not None else []
        score_owners = booking.owners(np.array([part.slot for part in parts], np.int64)).tolist()
        return LaunchedStep(results, rows, score_owners, scored, booking.owners(scored))

    def _publish(self, complete: np.ndarray) -> None:
        """Stores the states of the prefixes that these slots have computed, and queues their children."""
        prefixes = []
        for slot in complete.tolist():
            sequence = self.scheduler.sequence(slot)
            if sequence.prefix is not None:
                prefixes.append((sequence.prefix, self.pool.record(slot)))
        if prefixes:
            self.admission.publish(prefixes, self.scheduler)
        for slot in complete.tolist():
            self.scheduler.sequence(slot).prefix = None  # a restart must not compute it again: it is stored

    def _take_in(self, leave_in_flight: int) -> None:
        """Books the results of the launched steps, except for the latest `leave_in_flight` steps."""
        while len(self._in_flight) > leave_in_flight:
            clock = Clock()
            step = self._in_flight[0]
            scores, sampled = step.results.scores, step.results.sampled
            if scores is not None:
                for part, owner, found in zip(scores.parts, step.score_owners, scores.read(), strict=True):
                    self.booking.add_scores(part.slot, owner, found, part.are_next)
                    if not scores.are_finite and not np.isfinite(found.logprobs).all():
                        self.booking.fail(part.slot, owner)
            finished = []
            if sampled is not None:
                tokens = sampled.read()
                self.stats.wait_seconds += clock.lap()
                finished = self.booking.record(step.sampled, tokens)
            for slot, owner in zip(step.complete.tolist(), step.complete_owners.tolist(), strict=True):
                if self.booking.owns(slot, owner):
                    finished.append((slot, self.booking.close(slot, "length")))
            if finished:
                self._outbox += [completion for _, completion in finished]
                self._release(np.array([slot for slot, _ in finished], np.int64))
            self._in_flight.popleft()
            self.stats.commit_seconds += clock.lap()

    def _remove_aborted(self) -> None:
        """Finishes the aborted requests: running ones with the tokens booked so far, waiting ones without tokens.

        A running prefix that no request needs any more ends too.
        """
        if not self._aborted:
            return
        keys = {self._aborted.popleft() for _ in range(len(self._aborted))}
        self._outbox += map(Completion.of_waiting, self.admission.remove(keys, self.scheduler))
        unwanted = []
        for sequence in self.scheduler.running:
            if sequence.request is not None and sequence.request.key in keys:
                self._outbox.append(self.booking.close(sequence.slot, "abort"))
                sequence.drop_request()
            if sequence.is_unwanted:
                unwanted.append(sequence.slot)
                self.admission.give_up(sequence)
        self._release(np.array(unwanted, np.int64))

    def _within_memory(self, action: Callable[[], None]) -> None:
        """Runs a step, or starts sequences. When memory runs out, halves the slots and restarts all sequences.

        Raises:
            CapacityError: a single token of a single sequence does not fit.
        """
        handled = sys.exc_info()[1]  # an error that the caller is handling is not one of this step
        try:
            action()
            return
        except (RuntimeError, MemoryError) as error:
            reason = reason_of_out_of_memory(error, handled)
            if reason is None:
                raise
        # Outside of the handler above: inside, the exception's traceback would keep the failed step's tensors alive.
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
        """Goes on with fewer slots and tokens. Running sequences restart from their prompts and draw the same tokens.

        Returns:
            None; or why this number of slots does not fit, and then the engine has no slots.
        """
        self.admission.restart(self.scheduler.running, num_slots)
        self.scheduler = self.scheduler.restart(num_slots, num_tokens)
        try:
            self._allocate(0)
            torch.cuda.empty_cache()  # does nothing without a CUDA device
            self._allocate(num_slots)
            self._runner.prepare()
        except (RuntimeError, MemoryError) as error:
            reason = reason_of_out_of_memory(error, handled)
            if reason is None:
                raise
            self.pool, self._num_slots = StatePool(self._pool_parts, 0), 0
            return reason
        self._num_slots = num_slots
        self.stats.max_batch_size, self.stats.max_batch_tokens = num_slots, num_tokens
        return None

    def _take_finished(self) -> list[Completion]:
        finished, self._outbox = self._outbox, []
        return finished

    def _release(self, slots: np.ndarray) -> None:
        """Frees the slots of sequences that have ended."""
        if len(slots):
            self.scheduler.finish(slots)
            self.sampler.release(slots)
            self.pool.free(slots.tolist())
            self.stats.running = self.scheduler.num_running

    def _abandon(self) -> None:
        """Drops everything that runs or waits."""
        self._in_flight.clear()
        self.booking.close_all()
        self.sampler.release(np.arange(self.pool.num_slots))
        self.pool.free_all()
        self.scheduler = self.scheduler.emptied(self.pool.num_slots)
        self.admission.clear()
        self._outbox = []
        self._aborted.clear()
        self.stats.running = 0
