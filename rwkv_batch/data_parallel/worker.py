"""The program of an engine's process: loads the model, serves the rows that its parent sends, and ends with it."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import RwkvBatchError
from ..message_process import ParentPipes, sendable
from ..output_builder import OutputBuilder
from ..rows import ScoreRow
from ..threads import share_cores
from .messages import (
    Abort,
    Answer,
    Ask,
    CloseInput,
    Crashed,
    End,
    Failed,
    Ready,
    Results,
    Row,
    Rows,
    Start,
    unpacked_rows,
)

if TYPE_CHECKING:
    from ..llm import LLM
    from ..sampling_params import SamplingParams
    from ..serving_call import ServingCall


def main(parent: str) -> None:
    """The program.

    Args:
        parent: the process whose end ends this one.
    """
    try:
        worker = Worker(ParentPipes(parent))
        if worker.load():
            worker.run()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # threads and a broken device may keep an orderly end from coming
    os._exit(0)


class _Call:
    """One call's rows, as they come.

    Attributes:
        is_ended: the call is to end without results.
        is_scoring: the rows are to be scored.
        served: the call of the `LLM`, once it exists.
    """

    def __init__(self, number: int, is_scoring: bool, aborted: set[int], llm: LLM) -> None:
        self.number = number
        self.is_scoring = is_scoring
        self.is_ended = False
        self.served: ServingCall | None = None
        self._batches: queue.SimpleQueue[list[Row] | None] = queue.SimpleQueue()
        self._aborted = aborted
        self._llm = llm

    def add(self, rows: list[Row]) -> None:
        self._batches.put(rows)

    def close_input(self) -> None:
        self._batches.put(None)

    def end(self) -> None:
        self.is_ended = True
        self.close_input()
        if self.served is not None:
            self.served.cancel()

    def batches(self) -> Iterator[list[Row]]:
        """The rows. This runs on the thread that reads the input of the `LLM`'s call, while that call is running."""
        while (rows := self._batches.get()) is not None and not self.is_ended:
            for row in rows if self._aborted else ():
                if row.key in self._aborted:
                    self._llm.abort(row.key)
            yield rows


class Worker:
    """The engine of this process. The main thread serves; another thread reads the messages."""

    def __init__(self, parent: ParentPipes) -> None:
        self._parent = parent
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._open: list[_Call] = []  # calls that are not finished
        self._latest: _Call | None = None
        self._last: SamplingParams | None = None
        self._aborted: set[int] = set()  # numbers of rows to abort that are not finished

    def load(self) -> bool:
        """Loads the model, and answers. Returns whether it is loaded."""
        start: Start = self._parent.receive()
        try:
            self._llm = llm = _load(start)
        except Exception as error:
            self._parent.send(Failed(sendable(error)))
            return False
        self._outputs = OutputBuilder(llm.tokenizer)
        self._parent.send(Ready(llm.summary.memory.max_batch_size, llm.describe()["matrix_bytes"]))
        return True

    def run(self) -> None:
        """Serves one call after the other. The end of the messages ends the process."""
        threading.Thread(target=self._read, name="rwkv_batch-messages", daemon=True).start()
        while True:
            call = self._calls.get()
            try:
                self._serve(call)
            except RwkvBatchError as error:
                self._parent.send(Failed(sendable(error), call.number))
            except Exception as error:
                self._parent.send(Crashed(f"{type(error).__name__}: {error}"))
                raise
            self._open.remove(call)

    def _serve(self, call: _Call) -> None:
        outputs = self._outputs.scores if call.is_scoring else self._outputs.requests
        with closing(self._llm.serving.run(call.batches())) as served:
            call.served = served  # first, and `is_ended` is read second: `end` does the reverse
            if call.is_ended:
                return
            for finished in served:
                results: list[tuple[Any, Any]] = list(outputs(finished))
                self._parent.send(Results(results))
                if self._aborted:
                    self._aborted.difference_update([number for number, _ in results])

    def _read(self) -> None:
        """Reads the messages. This is the loop of a thread."""
        try:
            while True:
                self._take(self._parent.receive())
        except EOFError:
            os._exit(0)
        except BaseException as error:
            self._parent.send(Crashed(f"a message cannot be read: {type(error).__name__}: {error}"))
            os._exit(1)

    def _take(self, message: object) -> None:
        latest = self._latest
        if isinstance(message, Rows):
            rows, self._last = unpacked_rows(message, self._last)
            if latest is None or latest.number != message.call:
                self._latest = latest = _Call(message.call, message.kind is ScoreRow, self._aborted, self._llm)
                self._open.append(latest)
                self._calls.put(latest)
            latest.add(rows)
        elif isinstance(message, CloseInput):
            if latest is not None and latest.number == message.call:
                latest.close_input()
        elif isinstance(message, Abort):
            self._aborted.update(message.numbers)
            for number in message.numbers:
                self._llm.abort(number)
        elif isinstance(message, End):
            for call in list(self._open):
                call.end()
        elif isinstance(message, Ask):
            self._answer(message)

    def _answer(self, message: Ask) -> None:
        try:
            if message.question == "check_integrity":
                self._llm.check_integrity()
            self._parent.send(Answer(message.number, self._llm.stats(), None))
        except AssertionError as error:
            self._parent.send(Answer(message.number, None, str(error)))


def _load(start: Start) -> LLM:
    share_cores(start.num_processes)
    import torch

    from ..llm import LLM
    from ..model_summary import inspect_model

    # The parent logs what it has found too.
    logging.getLogger(inspect_model.__module__).setLevel(logging.ERROR)
    if start.cuda_index is not None:
        torch.cuda.set_device(start.cuda_index)
    summary = inspect_model(start.model, start.engine)
    return LLM.from_summary(summary, max_prompt_tokens=start.max_prompt_tokens)
