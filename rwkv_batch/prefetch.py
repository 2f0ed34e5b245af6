"""Run an iterator of lists on a thread of its own, a bounded number of their items ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

    Attributes:
        is_ended: every item has been taken.
        thread: the background thread.
    """

    def __init__(self, lists: Iterable[Sequence[T]], ahead: int) -> None:
        self.is_ended = False
        self._ahead = ahead
        self._ready: deque[T] = deque()
        # Its lock is reentrant: a garbage collection inside may close another iterator, even this one.
        self._changed = threading.Condition()
        self._is_made = False  # no more items will become ready
        self._is_closed = False
        self._failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(iter(lists),), name="rwkv_batch-prefetch", daemon=True)
        self.thread.start()

    def has_ready(self, count: int) -> bool:
        """That many items can be taken without waiting, or all that are left."""
        return len(self._ready) >= count or self._is_made

    def take(self, most: int, wait: bool) -> list[T]:
        """The next items, in order; [] where none is ready, or at the end (see `is_ended`).

        Args:
            most: how many at the most.
            wait: wait for the first one, and a moment for more to gather behind it.
        """
        items: list[T] = []
        with self._changed:
            if wait:
                self._changed.wait_for(self._has_something)
            self._move(items, most)
            while wait and len(items) < most and not self._is_made:
                if not self._changed.wait_for(self._has_something, PATIENCE_SECONDS):
                    break
                self._move(items, most)
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

    def _move(self, items: list[T], most: int) -> None:
        """Move what is ready to `items`, until they are `most`."""
        for _ in range(min(most - len(items), len(self._ready))):
            items.append(self._ready.popleft())
        self._changed.notify_all()

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
        start = 0
        with self._changed:
            while start < len(items):
                self._changed.wait_for(lambda: self._is_closed or len(self._ready) < self._ahead)
                if self._is_closed:
                    return
                stop = start + self._ahead - len(self._ready)
                self._ready.extend(items[start:stop])
                start = stop
                self._changed.notify_all()
