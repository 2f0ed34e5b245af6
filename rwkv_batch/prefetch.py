"""Prefetch: iterates lists on a background thread, a bounded number of their items ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 0.05
"""How long `take` waits for one more item once it has some."""
CLOSING_SECONDS = 5.0
"""How long `close` waits for the background thread."""


class Prefetch(Generic[T]):
    """The items of an iterator of lists, which runs on a background thread.

    An exception of the iterator is raised again by `take`, after the items before it have been taken.

    Args:
        lists: the iterator; its next list is made while the items of earlier lists can be taken.
        ahead: limit of the weight of the items that have not been taken. The thread holds one more list at most.
        weight: an item's weight, at least 1, and always the same for an item; None gives every item the weight 1.
        needs: the future that must be complete before an item is ready, or None. The items behind it are ready before.
        in_order: no item is ready before the items in front of it.
        is_dropped: whether an item is not wanted any more; see `drop`.
        on_change: called after items have become ready or were dropped, and at the end. Any thread may call it.

    Attributes:
        is_ended: every item has been taken.
        thread: the background thread.
    """

    def __init__(
        self,
        lists: Iterable[Sequence[T]],
        ahead: int,
        weight: Callable[[T], int] | None = None,
        needs: Callable[[T], Future[Any] | None] | None = None,
        in_order: bool = False,
        is_dropped: Callable[[T], bool] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.is_ended = False
        self._ahead = ahead
        self._weight = weight or _one
        self._needs = needs or _nothing
        self._in_order = in_order
        self._is_dropped = is_dropped or _never
        self._on_change = on_change or _no_call
        self._dropped: deque[T] = deque()
        self._pending: dict[int, T] = {}  # by number: the items whose futures are not complete
        self._numbers = count()
        self._next: deque[T] = deque()  # of the latest list: the items that are neither ready nor pending
        self._ready: deque[T] = deque()
        self._ready_weight = 0
        self._pending_weight = 0
        # A reentrant lock (a Condition's default), because a garbage collection inside may close this iterator.
        self._changed = threading.Condition()
        self._has_ended = False  # the iterator has ended
        self._is_closed = False
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(iter(lists),), name="rwkv_batch-prefetch", daemon=True)
        self.thread.start()

    @property
    def _is_exhausted(self) -> bool:
        """No more items will become ready."""
        return self._has_ended and not self._pending_weight

    def has_ready(self, count: int) -> bool:
        """Whether items of this weight, or all that are left, can be taken without waiting."""
        return self._ready_weight >= count or self._is_exhausted

    def take(self, most: int, wait: bool) -> list[T]:
        """Takes the next items, in order; [] if none is ready, or at the end (see `is_ended`).

        Args:
            most: limit of the items' weight; the last item may exceed it.
            wait: wait for the first item, and then up to PATIENCE_SECONDS for each further one; or until an item is
                dropped.
        """
        items: list[T] = []
        with self._changed:
            if wait:
                self._changed.wait_for(self._has_something)
            left = self._move(items, most)
            while wait and left > 0 and not (self._is_exhausted or self._dropped):
                if not self._changed.wait_for(self._has_something, PATIENCE_SECONDS):
                    break
                left = self._move(items, left)
        if self._is_exhausted and not self._ready:
            if self._failure is None:
                self.is_ended = True
            elif not items:
                self.is_ended = True
                raise self._failure
        return items

    def drop(self) -> None:
        """Takes out the items for which `is_dropped` is true now. Any thread may call.

        An item for which it becomes true before the item is ready is dropped later, without a call.
        """
        with self._changed:
            ready, self._ready, self._ready_weight = self._ready, deque(), 0
            for item in ready:
                if self._is_dropped(item):
                    self._dropped.append(item)
                else:
                    self._add(item)
            for number in [number for number, item in self._pending.items() if self._is_dropped(item)]:
                self._dropped.append(self._withdraw(number))
            behind, self._next = self._next, deque()
            for item in behind:
                (self._dropped if self._is_dropped(item) else self._next).append(item)
            self._tell()

    def take_dropped(self) -> list[T]:
        """The items that were dropped since the last call, which `take` does not give."""
        return [self._dropped.popleft() for _ in range(len(self._dropped))]

    def close(self) -> None:
        """Stops the background thread. Waits for the list that it is making, at most CLOSING_SECONDS."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self.thread:
            self.thread.join(CLOSING_SECONDS)

    def _has_something(self) -> bool:
        return bool(self._ready) or bool(self._dropped) or self._is_exhausted

    def _move(self, items: list[T], most: int) -> int:
        """Moves ready items to `items` until their weight is `most`. Returns the weight that is missing."""
        while self._ready and most > 0:
            items.append(self._ready.popleft())
            weight = self._weight(items[-1])
            self._ready_weight -= weight
            most -= weight
        self._changed.notify_all()
        return most

    def _run(self, lists: Iterator[Sequence[T]]) -> None:
        try:
            for items in lists:
                self._offer(items)
                if self._is_closed:
                    break
        except BaseException as failure:  # handed to the thread that takes
            self._failure = failure
        finally:
            with self._changed:
                self._has_ended = True
                self._tell()

    def _offer(self, items: Sequence[T]) -> None:
        """Makes items ready, one by one, and waits whenever the weight of those not taken has reached the limit."""
        with self._changed:
            self._next.extend(items)
            while self._next:
                if not self._may_offer():
                    self._tell()
                    self._changed.wait_for(self._may_offer)
                if self._is_closed:
                    return
                if not self._next:  # the rest was dropped
                    break
                item = self._next.popleft()
                needed = self._needs(item)
                if self._is_dropped(item):
                    self._dropped.append(item)
                elif needed is None or needed.done():
                    self._add(item)
                else:
                    number = next(self._numbers)
                    self._pending[number] = item
                    self._pending_weight += self._weight(item)
                    needed.add_done_callback(partial(self._arrive, number))
            self._tell()

    def _may_offer(self) -> bool:
        is_behind = self._in_order and self._pending_weight > 0
        is_over = self._is_closed or not self._next
        return is_over or (not is_behind and self._ready_weight + self._pending_weight < self._ahead)

    def _arrive(self, number: int, _: Future[Any]) -> None:
        """Makes an item ready whose future is complete. This runs on the thread that completes the future."""
        with self._changed:
            if number in self._pending:  # it was not dropped
                self._add(self._withdraw(number))
                self._tell()

    def _tell(self) -> None:
        """Tells those who wait for items that something has changed."""
        self._changed.notify_all()
        self._on_change()

    def _withdraw(self, number: int) -> T:
        """Takes out a pending item."""
        item = self._pending.pop(number)
        self._pending_weight -= self._weight(item)
        return item

    def _add(self, item: T) -> None:
        self._ready.append(item)
        self._ready_weight += self._weight(item)


def _nothing(item: object) -> None:
    return None


def _no_call() -> None:
    return None


def _never(item: object) -> bool:
    return False


def _one(item: object) -> int:
    return 1
