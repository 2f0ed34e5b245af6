"""Where requests come from: pulled, a window at a time, when a slot is free."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Protocol, runtime_checkable

from .request import Completion, Request

Batch = Request | Completion | list[Request]
"""One request, requests that belong together (the samples of a row), or a result that needs no computing."""


@runtime_checkable
class Source(Protocol):
    """Gives out requests."""

    is_ended: bool
    """Everything has been taken."""

    def has_ready(self, count: int) -> bool:
        """That many can be taken without waiting, or all that are left."""

    def take(self, most: int, wait: bool) -> list[Batch]:
        """The next batches, at most `most`; unless `wait`, only those that are ready."""


class Pulled:
    """A source over any iterable, whose items are ready when they are asked for."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.is_ended = False

    def has_ready(self, count: int) -> bool:
        return True

    def take(self, most: int, wait: bool) -> list[Batch]:
        taken = list(islice(self._batches, most))
        self.is_ended = len(taken) < most
        return taken
