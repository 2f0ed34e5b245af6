"""Clocks around functions: seconds by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch


class Watched(NamedTuple):
    """A function whose time is counted."""

    owner: Any
    name: str
    part: str
    clock: Callable[[], float]
    """`perf_counter` for the main thread; `thread_time`, the processor time of a thread, for all others."""


class Clocks:
    """Adds up the time inside functions."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def watching(self, functions: Iterable[Watched]) -> Iterator[None]:
        """Counts the time in these functions.

        Raises:
            AttributeError: an owner lacks the function.
        """
        with ExitStack() as stack:
            for one in functions:
                stack.enter_context(patch.object(one.owner, one.name, self._timed(one)))
            yield

    def _timed(self, one: Watched) -> Callable[..., Any]:
        function = getattr(one.owner, one.name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = one.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[one.part] += one.clock() - start

        return timed
