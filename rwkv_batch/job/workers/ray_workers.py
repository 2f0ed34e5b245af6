"""Workers in a cluster of Ray: an actor for each. Ray starts it when a node has room for it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from importlib import import_module
from itertools import count
from typing import Any, NamedTuple

from ...errors import ConfigurationError, RwkvBatchError
from . import ray_cluster
from .devices import Reservation
from .interface import Events, Worker
from .messages import Crashed, Ended, Failed, Message, Start
from .ray_cluster import connected, last_line, ray_options
from .ray_mailbox import Mail, Mailbox

WAIT_SECONDS = 0.2
"""The longest time until the end of an actor is noticed."""
END_SECONDS = 5.0
"""How long to wait for killed actors."""


class _Died(NamedTuple):
    """The coordinator's message to itself, behind all messages of an actor that has ended.

    Args:
        error: what Ray says; None where `run` has returned.
    """

    error: Exception | None


class RayWorkers:
    """Workers that are actors.

    The actors end when this process ends. A worker's last message, `Ended`, comes after all messages of its that have
    arrived.

    Args:
        starts: what each worker serves, by its number.
        reserved: what each of them reserves.
    """

    def __init__(self, starts: Sequence[Start], reserved: Reservation) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray = connected(None)
        self.events: Events = queue.SimpleQueue()
        self.count = len(starts)
        self._starts = starts
        self._keys = count(1)
        self._by_key: dict[int, RayWorker] = {}
        self._running: dict[Any, RayWorker] = {}  # by the result of the actor's `run`
        self._is_closed = threading.Event()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        program = import_module(ray_cluster.PROGRAM).RayJobWorker
        # Messages to an actor are taken one at a time, in their order, while its `run` serves.
        options = {"concurrency_groups": {"messages": 1}, "max_restarts": 0}
        self._actor = ray.remote(**options, **ray_options(reserved))(program)
        for loop in (self._receive, self._watch):
            threading.Thread(target=loop, name="rwkv_batch-ray", daemon=True).start()

    def start(self, index: int) -> Worker:
        """Asks for the actor of the worker with this number. It begins when a node has room for it."""
        key = next(self._keys)
        actor = self._actor.remote(self._mailbox, key, self._starts[index], os.getcwd())
        worker = self._by_key[key] = RayWorker(index, key, actor)
        self._running[actor.run.remote()] = worker
        return worker

    def close(self) -> None:
        """Ends all actors, and waits for their end for a few seconds at most."""
        self._is_closed.set()
        for worker in [*self._by_key.values()]:
            worker.kill()
        if results := [*self._running]:
            self._ray.wait(results, num_returns=len(results), timeout=END_SECONDS)
        self._ray.kill(self._mailbox, no_restart=True)

    def _receive(self) -> None:
        """The loop of a thread."""
        try:
            while not self._is_closed.is_set():
                for mail in self._ray.get(self._mailbox.take.remote()):
                    if mail.key in self._by_key:  # else it was on its way when its worker ended
                        self._hear(self._by_key[mail.key], mail)
        except Exception as error:
            self._fail(f"the messages of workers do not arrive any more: {last_line(error)}")

    def _hear(self, worker: RayWorker, mail: Mail) -> None:
        worker.node = worker.node or mail.node
        if isinstance(mail.message, Crashed):
            worker.reason = mail.message.reason
        else:
            message = self._end(worker, mail.message) if isinstance(mail.message, _Died) else mail.message
            self.events.put((worker, message))

    def _watch(self) -> None:
        """The loop of a thread. It reports ends through the mailbox, behind the messages that the actors have sent."""
        try:
            while not self._is_closed.wait(0 if self._running else WAIT_SECONDS):
                results = [*self._running]
                for result in self._ray.wait(results, timeout=WAIT_SECONDS)[0] if results else ():
                    worker = self._running.pop(result)
                    self._mailbox.put.remote(worker.key, "", [_Died(self._error_of(result))])
        except Exception as error:
            self._fail(f"the cluster of Ray does not answer: {last_line(error)}")

    def _error_of(self, result: Any) -> Exception | None:
        try:
            self._ray.get(result)
        except Exception as error:
            return error
        return None

    def _end(self, worker: RayWorker, died: _Died) -> Message:
        """Returns the message to the coordinator about the end of an actor."""
        del self._by_key[worker.key]
        if died.error is None:
            worker.kill()
            return Ended(worker.reason or "exit code 0")
        how = worker.reason or last_line(died.error)
        if not worker.node and getattr(died.error, "actor_init_failed", False):
            return Failed(ConfigurationError(f"a worker cannot start: {how}", setting="run.ray"))
        # Ray marks a node as lost before it reports the ends of its actors.
        lost = {node["NodeID"] for node in self._ray.nodes() if not node["Alive"]}
        is_lost = worker.node in lost
        return Ended("the loss of its node" if is_lost else how, is_machine_lost=is_lost)

    def _fail(self, sentence: str) -> None:
        """The job cannot go on."""
        if not self._is_closed.is_set():
            for worker in [*self._by_key.values()][:1]:
                self.events.put((worker, Failed(RwkvBatchError(sentence))))


class RayWorker:
    """A worker that is an actor.

    Attributes:
        key: its name for the mailbox.
        node: the id of its node of Ray; "" until it runs.
        reason: why its engine has failed; "" until it has.
    """

    def __init__(self, index: int, key: int, actor: Any) -> None:
        self.index = index
        self.key = key
        self.node = self.reason = ""
        self.actor = actor

    def send(self, message: Any) -> None:
        """Sends a message."""
        self.actor.take.options(concurrency_group="messages").remote(message)

    def kill(self) -> None:
        """Ends the process of the actor."""
        import ray

        ray.kill(self.actor, no_restart=True)
