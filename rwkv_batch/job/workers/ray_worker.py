"""What a worker is in a cluster of Ray: an actor, whose messages go through the actor `Mailbox` at the coordinator."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError, ConfigurationError, RwkvBatchError
from ...message_process import sendable
from ...settings import EngineSettings, ModelSettings
from ..folders import Folders
from ..plan import Assignment
from ..state import read_job
from .messages import Close, Failed, Message, Placed, Start, Stop, Taken
from .worker import JobWorker

Deliver = Callable[[list[Message]], None]


class RayJobWorker:
    """The class of the actor. `take` runs on a thread of its own, while `run` serves.

    Args:
        mailbox: the actor to which messages go.
        key: the worker's name for the mailbox.
        start: what to serve.
        folder: the current folder of the coordinator, in which relative paths are.
    """

    def __init__(self, mailbox: Any, key: int, start: Start, folder: str) -> None:
        import ray

        enter(folder)
        logging.basicConfig(format=f"%(levelname)s worker {start.number}: %(message)s", level=logging.WARNING)
        node = ray.get_runtime_context().get_node_id()
        self._outbox = Outbox(lambda messages: ray.get(mailbox.put.remote(key, node, messages)))
        self._start = start
        self._worker = JobWorker(start, self._outbox.send)

    def run(self) -> None:
        """Serves until there are no further units."""
        self._outbox.send(Placed(socket.gethostname(), os.getpid()))
        try:
            check_folders(self._start)
        except (RwkvBatchError, OSError) as error:
            self._outbox.send(Failed(error))
        else:
            self._worker.run()
        self._outbox.close()

    def take(self, message: Assignment | Close | Stop) -> None:
        """Takes a message of the coordinator."""
        self._worker.take(message)


class Outbox:
    """Delivers messages in their order, on a thread of its own. All that have come are delivered together.

    Args:
        deliver: delivers some messages. They have arrived when the call returns.
    """

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._messages: queue.SimpleQueue[tuple[Message, threading.Event | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rwkv_batch-messages", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Sends a message. Waits only for a `Taken`, until it has arrived. Any thread may call."""
        if isinstance(message, Failed):
            message = Failed(with_host(message.error))
        arrived = threading.Event() if isinstance(message, Taken) else None
        self._messages.put((message, arrived))
        if arrived is not None:
            arrived.wait()

    def close(self) -> None:
        """Waits until all messages have arrived."""
        self._messages.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            found = [self._messages.get()]
            while not self._messages.empty():
                found.append(self._messages.get())
            pairs = [pair for pair in found if pair is not None]
            is_open = len(pairs) == len(found)
            try:
                if pairs:
                    self._deliver([message for message, _ in pairs])
            except Exception:  # the mailbox is gone, and the job with it
                os._exit(1)
            for _, arrived in pairs:
                if arrived is not None:
                    arrived.set()


def inspect_on_node(model: ModelSettings, engine: EngineSettings, folder: str, num_cpus: float) -> Any:
    """Inspects a model on a node of the cluster, as a worker there will see it. Returns what is raised, too.

    Args:
        folder: the current folder of the coordinator, in which relative paths are.
        num_cpus: of a worker; its share of the node's memory is its share of the node's CPUs. 0: all of the memory.

    Returns:
        The summary, whose fingerprint is known; or an error that names the host.
    """
    from ...llm import inspect_model

    enter(folder)
    if engine.device == "cpu" and num_cpus:
        engine = replace(engine, memory_share=engine.memory_share * min(1.0, num_cpus / (os.cpu_count() or 1)))
    try:
        summary = inspect_model(model, engine)
        return replace(summary, known_fingerprint=summary.fingerprint)
    except (RwkvBatchError, OSError) as error:
        return sendable(with_host(error))


def enter(folder: str) -> None:
    """Makes a folder the current one, where this node has it."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def check_folders(start: Start) -> None:
    """Checks that this node sees the folders of the job: a folder of the same name on its own disk would hide parts.

    Raises:
        ConfigurationError: it sees another folder.
    """
    folders = Folders.of(start.job)
    found = read_job(folders.open_storage(), folders.state)
    if found is None or found["fingerprint"] != start.document["fingerprint"]:
        raise ConfigurationError(
            f"the node {socket.gethostname()} does not find this job in {folders.state}; output and state must be on "
            "storage that all nodes share",
            setting="output.path",
        )


def with_host(error: Exception) -> Exception:
    """The error; where a model cannot be read, its sentence begins with the host, and says where models must be."""
    if not isinstance(error, CheckpointError):
        return error
    return CheckpointError(
        f"on the node {socket.gethostname()}: {error}; the path of a model must be the same on all nodes: put it on "
        "storage that they share, or name hf://owner/repo/file"
    )
