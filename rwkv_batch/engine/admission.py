"""Admission: chooses the waiting sequences that get the free slots, and keeps the snapshots of shared prefixes."""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import NamedTuple

from .prefix import Prefix, plan_prefixes
from .request import Request
from .scheduler import Scheduler
from .sequence import Sequence
from .snapshots import Snapshots
from .source import Source
from .state_pool import Record
from .stats import Clock

_GROUPS = 32
"""A group of free slots is this part of all slots."""


def planning_window(num_slots: int) -> int:
    """The number of requests that an engine with so many slots pulls at a time, and searches for shared prefixes."""
    return max(4 * num_slots, 256)


class Admitted(NamedTuple):
    """A sequence that is to start, and the state that it starts from."""

    sequence: Sequence
    record: Record | None
    """The state of its parent prefix; None: the initial state."""


class Grouping:
    """Lets free slots wait for more free slots.

    A step with prompt chunks takes longer than one without. If each slot took its next sequence at once, nearly every
    step of a job would read a prompt. Slots do not wait where nothing runs, where a prompt is being read anyway, or
    where 1/32 of the slots is free.

    Args:
        delay_seconds: the longest that a slot waits; 0 for not at all.
    """

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._free_since: float | None = None

    def is_due(self, num_free: int, scheduler: Scheduler) -> bool:
        """Whether the free slots take their next sequences now."""
        group = len(scheduler.position) // _GROUPS
        if not num_free:
            self._free_since = None
        elif not self._delay_seconds or num_free >= group or scheduler.is_prefilling or not scheduler.num_running:
            self._free_since = None
            return True
        elif self._free_since is None:
            self._free_since = perf_counter()
        elif perf_counter() - self._free_since >= self._delay_seconds:
            self._free_since = None
            return True
        return False


class Admission:
    """Pulls requests, groups them by shared prefixes, and decides which sequences start next.

    Args:
        snapshots: the states of computed prefixes.
        window: number of requests that are pulled at a time, and searched together for shared prefixes.
        prefix_sharing: compute prefixes that several rows share once. Samples of one row always share theirs.
        grouping: when free slots wait for more free slots.

    Attributes:
        num_waiting: number of requests that have been pulled and have not started.
        wait_seconds: time spent waiting for requests.
    """

    def __init__(
        self, snapshots: Snapshots, window: int, prefix_sharing: bool, grouping: Grouping | None = None
    ) -> None:
        self.snapshots = snapshots
        self.window = window
        self.num_waiting = 0
        self.wait_seconds = 0.0
        self._prefix_sharing = prefix_sharing
        self._grouping = grouping or Grouping(0.0)

    def fill(self, source: Source, scheduler: Scheduler, num_free: int, may_wait: bool) -> list[Admitted]:
        """Takes the next sequences from the queue, at most one for each free slot.

        Args:
            num_free: number of free slots.
            may_wait: wait for the source if nothing runs and nothing is queued.
        """
        admitted: list[Admitted] = []
        if not self._grouping.is_due(num_free, scheduler):
            return admitted
        spare = scheduler.spare_tokens
        while len(admitted) < num_free:
            self._refill(source, scheduler, may_wait and not admitted)
            if not scheduler.waiting or not self._may_start(scheduler.waiting[0], spare):
                break
            sequence = scheduler.waiting.popleft()
            if sequence.prefix is not None:
                if not self.snapshots.has_room:
                    self._unshare(sequence.prefix, sequence.parent, scheduler)
                    continue
                self.snapshots.reserve()
            spare -= len(sequence.prompt) - sequence.num_shared
            self.num_waiting -= sequence.request is not None
            record = self.snapshots.take(sequence.parent) if sequence.parent is not None else None
            admitted.append(Admitted(sequence, record))
        return admitted

    def publish(self, complete: list[tuple[Prefix, Record]], scheduler: Scheduler) -> None:
        """Stores the states of computed prefixes, and queues their children.

        Copying a state may run out of memory. All states are copied before any child is queued, so that the queue is
        unchanged if that happens.

        Args:
            complete: prefixes, each with the record of the slot that has computed it.
        """
        for prefix, record in complete:
            self.snapshots.store(prefix, record)
        for prefix, _ in complete:
            scheduler.add_first(Sequence(child, prefix) for child in prefix.children)

    def remove(self, keys: set[object], scheduler: Scheduler) -> list[Request]:
        """Takes the requests with these keys out of the queue, and from below the prefixes that wait or run."""
        removed: list[Request] = []
        for sequence in scheduler.running:
            if sequence.prefix is not None:
                removed += sequence.prefix.remove_children(keys)
        kept: deque[Sequence] = deque()
        for sequence in scheduler.waiting:
            removed += _removed(sequence, keys)
            if sequence.request is not None or sequence.prefix is not None:
                kept.append(sequence)
            elif sequence.parent is not None:
                self.snapshots.add_children(sequence.parent, -1)
        scheduler.waiting = kept
        self.num_waiting -= len(removed)
        return removed

    def give_up(self, sequence: Sequence) -> None:
        """Takes back what a running sequence has reserved, when it ends before its prefix is computed."""
        if sequence.prefix is not None:
            self.snapshots.cancel()

    def restart(self, running: list[Sequence], num_slots: int) -> None:
        """Counts the running sequences as waiting again, after a change to `num_slots` slots.

        A prefix that was running is computed again, so that its snapshot is dropped if there already is one.
        """
        for sequence in running:
            self.num_waiting += sequence.request is not None
            if sequence.prefix is not None:
                self.snapshots.drop(sequence.prefix)
        self.snapshots.shrink(num_slots)

    def clear(self) -> None:
        """Drops all snapshots, and counts no request as waiting."""
        self.snapshots.clear()
        self.num_waiting = 0

    def _may_start(self, sequence: Sequence, spare_tokens: int) -> bool:
        """A prefix starts only if the next step has unused tokens and no snapshot place is about to become free.

        Starting late keeps the number of snapshots small. Where every place is taken but a running prefix has reserved
        one, that place becomes free when the prefix's children have started; waiting for it is cheaper than `_unshare`.
        """
        if sequence.prefix is None:
            return True
        waits_for_place = not self.snapshots.has_room and self.snapshots.num_reserved > 0
        return spare_tokens > 0 and not waits_for_place

    def _unshare(self, prefix: Prefix, parent: Prefix | None, scheduler: Scheduler) -> None:
        """Queues the children of a prefix in its place: each computes the prefix's tokens itself.

        This is for a prefix without a place for its snapshot, when no place will become free.
        """
        nodes = [*prefix.children, *([prefix.request] if prefix.request else [])]
        if parent is not None:
            self.snapshots.add_children(parent, len(nodes) - 1)
        scheduler.add_first(Sequence(node, parent) for node in nodes)

    def _refill(self, source: Source, scheduler: Scheduler, may_wait: bool) -> None:
        """Pulls the next window of requests while half of the last window still waits.

        Pulling early keeps the slots full: when a window's last long requests run, the next window's requests take the
        other slots. The call waits for the source only if the engine is idle. It takes less than a whole window only
        if nothing is queued, because prefixes are found within a window.
        """
        if source.is_ended or self.num_waiting >= self.window // 2:
            return
        if scheduler.waiting and not source.has_ready(self.window):
            return
        clock, waits = Clock(), may_wait and scheduler.is_idle
        items = source.take(self.window, wait=waits)
        if waits:
            self.wait_seconds += clock.lap()
        requests = [request for item in items for request in (item if isinstance(item, list) else (item,))]
        self.num_waiting += len(requests)
        scheduler.add(Sequence(root) for root in plan_prefixes(requests, self._prefix_sharing))
        if source.is_ended:
            scheduler.sort_waiting()


def _removed(sequence: Sequence, keys: set[object]) -> list[Request]:
    """Takes the requests with these keys out of a waiting sequence, and returns them.

    A sequence from which everything was taken has neither a request nor a prefix afterwards.
    """
    if sequence.prefix is not None:
        removed = sequence.prefix.remove(keys)
        sequence.request = sequence.prefix.request
        if not sequence.prefix.is_wanted:
            sequence.prefix = None
        return removed
    if sequence.request is not None and sequence.request.key in keys:
        removed, sequence.request = [sequence.request], None
        return removed
    return []
