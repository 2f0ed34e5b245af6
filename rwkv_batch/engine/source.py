"""Sources of requests, from which the engine pulls a window at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from .request import Request

Item = Request | list[Request]
"""One request, or the requests of one row."""


class Source(Protocol):
    """An iterator of requests that can be read without waiting."""

    is_ended: bool
    """Every request has been taken."""

    def has_ready(self, count: int) -> bool:
        """Whether `count` requests, or all that are left, can be taken without waiting."""

    def take(self, most: int, wait: bool) -> Sequence[Item]:
        """Takes the next items, at most `most`. Without `wait`, takes only those that are ready.

        With `wait` the result may still be empty before the source has ended. The engine then yields to its caller,
        and calls `take` again.
        """


class Pulled:
    """A source over an iterable whose items need no waiting."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.is_ended = False

    def has_ready(self, count: int) -> bool:
        return True

    def take(self, most: int, wait: bool) -> list[Item]:
        taken = list(islice(self._items, most))
        self.is_ended = len(taken) < most
        return taken
