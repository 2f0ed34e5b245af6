"""Run an iterator on a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_END = object()


class Prefetch(Generic[T]):
    """Iterates over `items`, which are made on a background thread while the caller does something else.

    An exception raised while making an item is raised again where that item would have come.

    Args:
        ahead: items that may wait to be taken.
    """

    def __init__(self, items: Iterable[T], ahead: int) -> None:
        self._queue: queue.Queue[object] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(iter(items),), name="rwkv_batch-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not _END:
            yield item  # type: ignore[misc]
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop making items; waits for the one that is being made."""
        self._closed.set()
        while self._thread.is_alive():
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
