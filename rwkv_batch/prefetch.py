"""Run an iterator of lists on a thread of its own, a bounded number of their items ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 0.05
"""How long `take` waits for more items while some have gathered."""
CLOSING_SECONDS = 5.0


class Prefetch(Generic[T]):
    """Items of lists that are made on a background thread while the caller does something else.

    An exception raised while a list is made is raised again where its items would have come.

    Args:
        lists: makes the items, several at a time. A list that is ready is not kept back until the next one is.
        ahead: items that may wait to be taken, beside the list that has been made last.
        weight: for how many items one counts, at least 1; None counts each for one. It must stay as it is.

    Attributes:
        is_ended: every item has been taken.
        thread: the background thread.
    """

    def __init__(self, lists: Iterable[Sequence[T]], ahead: int, weight: Callable[[T], int] | None = None) -> None:
        self.is_ended = False
        self._ahead = ahead
        self._weight = weight or _one
        self._ready: deque[T] = deque()
        self._ready_weight = 0
        # Its lock is reentrant: a garbage collection inside may close another iterator, even this one.
        self._changed = threading.Condition()
        self._is_made = False  # no more items will become ready
        self._is_closed = False
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(iter(lists),), name="rwkv_batch-prefetch", daemon=True)
        self.thread.start()

    def has_ready(self, count: int) -> bool:
        """That many items can be taken without waiting, or all that are left."""
        return self._ready_weight >= count or self._is_made

    def take(self, most: int, wait: bool) -> list[T]:
        """The next items, in order; [] where none is ready, or at the end (see `is_ended`).

        Args:
            most: how many at the most; the last one may count for more than what is left of them.
            wait: wait for the first one, and a moment for more to gather behind it.
        """
        items: list[T] = []
        with self._changed:
            if wait:
                self._changed.wait_for(self._has_something)
            left = self._move(items, most)
            while wait and left > 0 and not self._is_made:
                if not self._changed.wait_for(self._has_something, PATIENCE_SECONDS):
                    break
                left = self._move(items, left)
        if self._is_made and not self._ready:
            if self._failure is None:
                self.is_ended = True
            elif not items:
                self.is_ended = True
                raise self._failure
        return items

    def close(self) -> None:
        """Stop making items. Waits for the list that is being made, unless that takes long."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self.thread:
            self.thread.join(CLOSING_SECONDS)

    def _has_something(self) -> bool:
        return bool(self._ready) or self._is_made

    def _move(self, items: list[T], most: int) -> int:
        """Move what is ready to `items`, until they are `most`; returns how many are missing."""
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
                self._is_made = True
                self._changed.notify_all()

    def _offer(self, items: Sequence[T]) -> None:
        """Make items ready, as far as there is room; wait for room for the others."""
        with self._changed:
            for item in items:
                if self._ready_weight >= self._ahead:
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._is_closed or self._ready_weight < self._ahead)
                if self._is_closed:
                    return
                self._ready.append(item)
                self._ready_weight += self._weight(item)
            self._changed.notify_all()


def _one(item: object) -> int:
    return 1
