"""Run an iterator on a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 0.05
"""How long `take` waits for one more item while some have gathered."""
CLOSING_SECONDS = 5.0
_END = object()


class Prefetch(Generic[T]):
    """Holds the next of `items`, which are made on a background thread while the caller does something else.

    An exception raised while making an item is raised again where that item would have come.

    Args:
        ahead: items that may wait to be taken.

    Attributes:
        is_ended: every item has been taken.
    """

    def __init__(self, items: Iterable[T], ahead: int) -> None:
        self._queue: queue.Queue[object] = queue.Queue(ahead)
        self._closed = threading.Event()
        self.is_ended = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(iter(items),), name="rwkv_batch-prefetch", daemon=True)
        self._thread.start()

    def has_ready(self, count: int) -> bool:
        """That many items can be taken without waiting, or all that are left."""
        return self._queue.qsize() >= count or not self._thread.is_alive()

    def take(self, most: int, wait: bool) -> list[T]:
        """The next items, in order; [] where none is ready, or at the end (see `is_ended`).

        Args:
            most: how many at the most.
            wait: wait for the first one, and a moment for more to gather behind it.
        """
        items: list[T] = []
        try:
            while len(items) < most and not self.is_ended:
                item = self._queue.get(block=wait, timeout=PATIENCE_SECONDS if items else None)
                if item is not _END:
                    items.append(item)  # type: ignore[arg-type]
                elif items and self._failure is not None:
                    self._queue.put(_END)  # the failure comes next time
                    return items
                else:
                    self.is_ended = True
        except queue.Empty:
            return items
        if self.is_ended and self._failure is not None:
            raise self._failure
        return items

    def close(self) -> None:
        """Stop making items. Waits for the one that is being made, unless that takes long."""
        self._closed.set()
        deadline = time.monotonic() + CLOSING_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _run(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if self._closed.is_set():
                    break
                self._queue.put(item)
        except BaseException as failure:  # handed to the thread that iterates
            self._failure = failure
        finally:
            self._queue.put(_END)
