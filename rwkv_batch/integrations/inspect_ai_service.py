"""A thread that serves the requests of Inspect's samples as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..outputs import RequestOutput
from ..rows import GenerateRow
from ..sampling_params import SamplingParams

if TYPE_CHECKING:
    from ..llm import LLM

OutputFuture = Future[RequestOutput]


class Service:
    """A thread that serves requests, and sets the result of each request's future."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._rows: queue.Queue[tuple[OutputFuture, GenerateRow] | None] = queue.Queue()
        self._waiting: set[OutputFuture] = set()  # of requests that the engine has not been given
        self._served: set[OutputFuture] = set()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="rwkv_batch-inspect", daemon=True)
        self._thread.start()

    def submit(self, row: int, prompt: list[int], params: SamplingParams) -> OutputFuture:
        """Submits a request, and returns the future of its output. Cancelling the future aborts the request.

        Args:
            row: the random stream of the request.

        Raises:
            RuntimeError: the engine has failed, or was closed.
        """
        future: OutputFuture = Future()
        future.add_done_callback(self._abort_cancelled)
        with self._lock:
            if self._failure is not None:
                raise RuntimeError(f"the engine has ended: {self._failure}") from self._failure
            self._waiting.add(future)
        self._rows.put((future, GenerateRow(future, row, prompt, params)))
        return future

    def close(self) -> None:
        """Ends the thread, once the submitted requests are done."""
        self._rows.put(None)
        self._thread.join()

    def _abort_cancelled(self, future: OutputFuture) -> None:
        """Aborts the request of a cancelled future. Runs in the thread that has ended the future."""
        if future.cancelled():
            with self._lock:
                self._waiting.discard(future)
                is_served = future in self._served
            if is_served:
                self._llm.abort(future)

    def _wanted_rows(self) -> Iterator[GenerateRow]:
        """The submitted rows, without those whose futures are cancelled already."""
        for future, row in iter(self._rows.get, None):
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
            for future, output in self._llm.serve(self._wanted_rows()):
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
