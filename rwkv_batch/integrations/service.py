"""A thread that serves rows as they come, so that concurrent callers share one engine's batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Generic, TypeVar

from ..rows import GenerateRow, ScoreRow

SomeRow = TypeVar("SomeRow", GenerateRow, ScoreRow)
Output = TypeVar("Output")


class Service(Generic[SomeRow, Output]):
    """A thread that serves rows, and sets the result of each row's future. Any thread may submit rows.

    Args:
        serve: `LLM.serve` or `LLM.serve_scores` of a model. The thread calls it once.
        abort: `LLM.abort` of the same model.
        name: of the thread.
    """

    def __init__(
        self,
        serve: Callable[[Iterable[SomeRow]], Iterator[tuple[Any, Output]]],
        abort: Callable[[Hashable], None],
        name: str,
    ) -> None:
        self._serve: Callable[[Iterable[SomeRow]], Iterator[tuple[Any, Output]]] = serve
        self._abort = abort
        self._rows: queue.Queue[SomeRow | None] = queue.Queue()
        self._waiting: set[Future[Output]] = set()  # of rows that the engine has not been given
        self._served: set[Future[Output]] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, row: SomeRow) -> Future[Output]:
        """Submits a row, and returns the future of its output. Cancelling the future aborts the row.

        Args:
            row: its key is not read: the future is the key that the engine knows.

        Raises:
            RuntimeError: the engine has failed, or was closed.
        """
        future: Future[Output] = Future()
        future.add_done_callback(self._abort_cancelled)
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the engine has ended: {self._failure}") from self._failure
            self._waiting.add(future)
        self._rows.put(replace(row, key=future))
        return future

    def close(self) -> None:
        """Ends the thread, once the submitted rows are done."""
        self._rows.put(None)
        self._thread.join()

    def _abort_cancelled(self, future: Future[Output]) -> None:
        """Aborts the row of a cancelled future. Runs in the thread that has ended the future."""
        if future.cancelled():
            with self._lock:
                self._waiting.discard(future)
                is_served = future in self._served
            if is_served:
                self._abort(future)

    def _wanted_rows(self) -> Iterator[SomeRow]:
        """The submitted rows, without those whose futures are cancelled already."""
        while (row := self._rows.get()) is not None:
            future: Any = row.key
            with self._lock:
                is_wanted = future in self._waiting
                if is_wanted:
                    self._waiting.remove(future)
                    self._served.add(future)
            if is_wanted:
                yield row

    def _run(self) -> None:
        failure: BaseException = RuntimeError("it was closed")
        try:
            for future, output in self._serve(self._wanted_rows()):
                with self._lock:
                    self._served.discard(future)
                if future.set_running_or_notify_cancel():
                    future.set_result(output)
        except BaseException as error:
            failure = error
        with self._lock:
            self._failure, unfinished = failure, [*self._waiting, *self._served]
        for future in unfinished:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)
