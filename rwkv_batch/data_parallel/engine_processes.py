"""The processes of an `LLM` with several engines: their start, replacement and end, and their counters."""

from __future__ import annotations

import logging
import os
import queue
import weakref
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from ..engine.stats import EngineStats
from ..models.placement import Placement
from .engine_process import EngineProcess, Events
from .messages import Answer, End, Ended, Failed, Start

if TYPE_CHECKING:
    from ..model_summary import ModelSummary

logger = logging.getLogger(__name__)


class EngineProcesses:
    """Starts a process for each engine, and waits until all have loaded the model.

    Attributes:
        events: (process, message) of all processes.
        by_index: the processes that run, or load, by the number of their engine.
        numbers: numbers of calls and rows; each is used once.
        num_slots: the slots of all engines, as planned.

    Raises:
        CheckpointError, CapacityError, ...: as `LLM` does. No process is left.
    """

    def __init__(self, summary: ModelSummary, max_prompt_tokens: int | None) -> None:
        self.events: Events = queue.SimpleQueue()
        self.by_index: dict[int, EngineProcess] = {}
        self.numbers = count()
        self.num_slots = summary.num_slots
        self._starts = _starts(summary, max_prompt_tokens)
        # Also at the end of the interpreter. A fork of this process must not end its processes.
        self._end = weakref.finalize(self, _kill_all, self.by_index, os.getpid())
        try:
            self.start_missing()
            while any(process.ready is None for process in self.by_index.values()):
                process, message = self.events.get()
                assert process is not None
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, Ended):
                    raise loading_error(process)
        except BaseException:
            self.close()
            raise

    def start_missing(self) -> None:
        """Starts a process for each engine that has none, or whose process has ended. They load while others serve."""
        for index, start in enumerate(self._starts):
            if index not in self.by_index or self.by_index[index].ended_with:
                self.by_index[index] = EngineProcess(index, start, self.events)

    def replace(self, process: EngineProcess) -> EngineProcess:
        """Starts another process in place of one that has ended."""
        new = EngineProcess(process.index, self._starts[process.index], self.events)
        self.by_index[process.index] = new
        return new

    def end_calls(self) -> None:
        """Ends all calls of all engines, without results, at the next step of each."""
        for process in self.by_index.values():
            process.in_flight.clear()
            process.load = 0
            if process.ready is not None:
                process.send(End())

    @property
    def matrix_bytes(self) -> int:
        """See `Model`; of one engine."""
        return next((one.ready.matrix_bytes for one in self.by_index.values() if one.ready is not None), 0)

    @property
    def stats(self) -> EngineStats:
        """The sum of the counters of all engines; an engine whose process has ended counts from its new start."""
        return EngineStats.of_all([answer.stats for answer in self._ask("stats") if answer.stats is not None])

    def check_integrity(self) -> None:
        """See `LLM`."""
        for answer in self._ask("check_integrity"):
            if answer.error is not None:
                raise AssertionError(answer.error)

    def close(self) -> None:
        """Ends all processes, and waits for their end."""
        self._end()

    def _ask(self, question: str) -> list[Answer]:
        asked = [process.ask(question) for process in list(self.by_index.values()) if process.ready is not None]
        return [answer for future in asked if (answer := future.result()) is not None]


def loading_error(process: EngineProcess) -> RuntimeError:
    """The error of a process that has ended before its model was loaded."""
    return RuntimeError(
        f"the process of engine {process.index} ended with {process.ended_with} while it loaded the model"
    )


def _starts(summary: ModelSummary, max_prompt_tokens: int | None) -> list[Start]:
    """What each process is to load."""
    num_engines = summary.engine.data_parallel
    engine, placement, plan = replace(summary.engine, data_parallel=1), summary.placement, summary.memory
    is_on_gpus = _is_on_gpus(placement)
    if not is_on_gpus:
        # The free memory is seen by all processes; the plan has divided it.
        engine = replace(engine, max_batch_size=plan.max_batch_size, max_batch_tokens=plan.max_batch_tokens)
    # An address such as hf:// is looked up once; what it stands for may change.
    model = summary.model
    if str(model.model) != "demo":
        model = replace(model, model=summary.file.checkpoint.path)
    return [
        Start(model, engine, max_prompt_tokens, index if is_on_gpus else None, num_engines)
        for index in range(num_engines)
    ]


def _is_on_gpus(placement: Placement) -> bool:
    return placement.device.type == "cuda"


def _kill_all(by_index: dict[int, EngineProcess], parent: int) -> None:
    if os.getpid() == parent:
        for process in list(by_index.values()):
            process.send_kill()
        for process in list(by_index.values()):
            process.kill()
