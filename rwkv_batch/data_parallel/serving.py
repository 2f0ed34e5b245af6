"""Serving with several engines, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..serving import AnyServing
from .engine_processes import EngineProcesses
from .parallel_rows import ParallelRows


class ParallelServing(AnyServing):
    """Serves rows with several engines. The lists of a call have (key, output or outputs) in place of finished rows."""

    def __init__(self, engines: EngineProcesses) -> None:
        super().__init__()
        self._engines = engines

    def _rows(self, batches: Iterable[Sequence[Any]], stop_at_error: bool) -> ParallelRows:
        assert not stop_at_error, "jobs have one engine"
        return ParallelRows(self._engines, batches)

    def _free(self) -> None:
        self._engines.close()


class ReadyOutputs:
    """In place of an `OutputBuilder`: the processes of the engines have built the outputs."""

    def requests(self, results: Iterable[Any]) -> Iterator[Any]:
        return iter(results)

    scores = requests
