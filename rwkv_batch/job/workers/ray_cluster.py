"""A cluster of Ray: the connection to it, what a worker reserves of it, and the model as a node of it sees it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

from ...errors import ConfigurationError, MissingExtraError
from ...settings import EngineSettings, ModelSettings
from ..config import JobConfig
from .devices import Place, Reservation

PROGRAM = "rwkv_batch.job.workers.ray_worker"
"""The module with what runs on other nodes."""
NOTE_SECONDS = 15.0
"""After so long a sentence says that no node has room yet."""

logger = logging.getLogger(__name__)


def connected(address: str | None) -> Any:
    """Connects this process to a cluster, unless it is connected, and returns the module `ray`.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigurationError: there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("run.backend: ray", "ray", "ray") from error
    if not ray.is_initialized():
        with _own_signals():
            try:
                ray.init(address, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigurationError(
                    f"got {address!r}, where no cluster of Ray answers: {last_line(error)}", setting="run.ray.address"
                ) from error
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Inside, Ray may set handlers of signals; afterwards they are as before: a signal stops a job in its own way."""
    if threading.current_thread() is not threading.main_thread():  # Ray sets none there
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ray_places(job: JobConfig) -> list[Place]:
    """Returns a place for each worker of a job in a cluster. It may be that no node has room for a worker yet.

    Raises:
        MissingExtraError, ConfigurationError: as `connected`.
    """
    settings, device = job.run.ray, job.engine.device
    ray = connected(settings.address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [node.get("GPU", 0.0) for node in nodes]
    cpus = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1]
    num_gpus, num_cpus, count = settings.num_gpus, settings.num_cpus, job.run.workers
    if num_gpus is None:
        num_gpus = 1.0 if device == "cuda" or (device != "cpu" and any(gpus)) else 0.0
    if device == "cuda" and not num_gpus:
        raise ConfigurationError("got 0 beside engine.device: cuda, expected at least 1", setting="run.ray.num_gpus")
    if num_cpus is None:
        num_cpus = 1.0 if num_gpus else min(cpus, default=1.0)
    if count == "auto":
        count = sum(int(found // num_gpus) for found in gpus) if num_gpus else len(cpus)
    is_free = job.model.strategy is None and device in ("auto", "cpu", "cuda")
    place = Place(
        ("cuda" if num_gpus else "cpu") if is_free else None,
        reserved=Reservation(num_gpus, num_cpus, settings.resources, settings.runtime_env),
    )
    return [place] * max(count, 1)


def ray_options(reserved: Reservation) -> dict[str, Any]:
    """Returns the options of an actor or a task in the place of a worker."""
    options = {"num_gpus": reserved.num_gpus, "num_cpus": reserved.num_cpus, "resources": reserved.resources}
    return options | ({"runtime_env": reserved.runtime_env} if reserved.runtime_env else {})


def inspect_in_cluster(place: Place, model: ModelSettings, engine: EngineSettings) -> Any:
    """Inspects the model on a node that has room for a worker. Waits until there is one.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as `inspect_model`; the sentence names the
            host.
    """
    ray, reserved = connected(None), place.reserved
    assert reserved is not None
    if place.device is not None:
        engine = replace(engine, device=place.device)
    task = ray.remote(import_module(PROGRAM).inspect_on_node).options(**ray_options(reserved))
    result = task.remote(model, engine, os.getcwd(), reserved.num_cpus)
    if not ray.wait([result], timeout=NOTE_SECONDS)[0]:
        others = "".join(f", {name}: {amount:g}" for name, amount in reserved.resources.items())
        logger.warning(
            "run.ray: waiting for a node with these free resources for a worker: GPUs: %g, CPUs: %g%s. If no such node "
            "comes, end the command and lower run.ray",
            reserved.num_gpus,
            reserved.num_cpus,
            others,
        )
    try:
        summary = ray.get(result)
    except ray.exceptions.RayError as error:
        raise ConfigurationError(f"the model could not be inspected: {last_line(error)}", setting="run.ray") from error
    if isinstance(summary, Exception):
        raise summary
    return summary


def last_line(error: BaseException) -> str:
    """The line of Ray's message that says what happened; the lines before it have ids, and a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(" Some common causes", 1)[0] if lines else type(error).__name__
