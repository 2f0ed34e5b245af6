"""Which waiting requests get the free slots: the queue, shared prefixes, and the snapshots of their states."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .prefix import Prefix, plan_prefixes
from .request import Request
from .scheduler import Scheduler
from .sequence import Sequence
from .snapshots import Snapshots
from .source import Source
from .state_pool import Record


class Admitted(NamedTuple):
    """A sequence that may start."""

    sequence: Sequence
    record: Record | None
    """The state that it starts from; None: that of a fresh sequence."""


class Admission:
    """Decides what starts next.

    Args:
        snapshots: of the states of computed prefixes.
        window: requests that are pulled at a time, and among which shared prefixes are looked for.
        prefix_sharing: compute prefixes that several rows share once. Samples of one row always share theirs.

    Attributes:
        num_waiting: requests that have been pulled and have not started.
    """

    def __init__(self, snapshots: Snapshots, window: int, prefix_sharing: bool) -> None:
        self.snapshots = snapshots
        self.window = window
        self.num_waiting = 0
        self._prefix_sharing = prefix_sharing

    def fill(self, source: Source, scheduler: Scheduler, num_free: int, may_wait: bool) -> list[Admitted]:
        """The next sequences, at most one for each free slot.

        Args:
            may_wait: wait for the source where nothing else is to be done.
        """
        admitted: list[Admitted] = []
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
        """The states of these prefixes are computed: their children can start from them.

        All states are copied before any child is queued, as copying may run out of memory.

        Args:
            complete: prefixes, each with its slot's record.
        """
        for prefix, record in complete:
            self.snapshots.store(prefix, record)
        for prefix, _ in complete:
            scheduler.add_first(Sequence(work, prefix) for work in prefix.children)

    def remove(self, keys: set[object], scheduler: Scheduler) -> list[Request]:
        """Take requests with these keys out of the queue, and out of the prefixes in it and those being computed."""
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

    def restart(self, running: list[Sequence], num_slots: int) -> None:
        """What was running waits again, and will start from its prompt, with fewer slots."""
        for sequence in running:
            self.num_waiting += sequence.request is not None
            if sequence.prefix is not None:
                self.snapshots.drop(sequence.prefix)
        self.snapshots.shrink(num_slots)

    def clear(self) -> None:
        """Nothing waits."""
        self.snapshots.clear()
        self.num_waiting = 0

    def _may_start(self, sequence: Sequence, spare_tokens: int) -> bool:
        """A prefix starts only if the next step has unused tokens and no place for its state is about to be free."""
        if sequence.prefix is None:
            return True
        waits_for_place = not self.snapshots.has_room and self.snapshots.num_reserved > 0
        return spare_tokens > 0 and not waits_for_place

    def _unshare(self, prefix: Prefix, parent: Prefix | None, scheduler: Scheduler) -> None:
        """There is no place for the prefix's state, and none will be free: every child computes its tokens itself."""
        works = [*prefix.children, *([prefix.request] if prefix.request else [])]
        if parent is not None:
            self.snapshots.add_children(parent, len(works) - 1)
        scheduler.add_first(Sequence(work, parent) for work in works)

    def _refill(self, source: Source, scheduler: Scheduler, may_wait: bool) -> None:
        """Pull the next window of requests before the last one is used up: short requests fill slots at the end.

        Waits for the source only where the engine is idle. Takes less than a window only where nothing is queued.
        """
        if source.is_ended or self.num_waiting >= self.window // 2:
            return
        if scheduler.waiting and not source.has_ready(self.window):
            return
        items = source.take(self.window, wait=may_wait and scheduler.is_idle)
        requests = [request for item in items for request in (item if isinstance(item, list) else (item,))]
        self.num_waiting += len(requests)
        scheduler.add(Sequence(work) for work in plan_prefixes(requests, self._prefix_sharing))
        if source.is_ended:
            scheduler.sort_waiting()


def _removed(sequence: Sequence, keys: set[object]) -> list[Request]:
    """Take requests out of a waiting sequence. Where nothing is left, it has neither a request nor a prefix."""
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
