"""Where requests come from: pulled, a window at a time, when a slot is free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from .request import Request

Item = Request | list[Request]
"""One request, or requests that belong together: the samples of a row."""


class Source(Protocol):
    """Gives out requests."""

    is_ended: bool
    """Everything has been taken."""

    def has_ready(self, count: int) -> bool:
        """That many can be taken without waiting, or all that are left."""

    def take(self, most: int, wait: bool) -> Sequence[Item]:
        """The next items, at most `most`; unless `wait`, only those that are ready.

        It may return none though it was to wait, and has not ended: the engine then returns to its caller, and asks
        again.
        """


class Pulled:
    """A source over any iterable, whose items are ready when they are asked for."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.is_ended = False

    def has_ready(self, count: int) -> bool:
        return True

    def take(self, most: int, wait: bool) -> list[Item]:
        taken = list(islice(self._items, most))
        self.is_ended = len(taken) < most
        return taken
