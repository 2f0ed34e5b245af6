"""A job that workers serve: what each of them is started with, and the coordinator around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from ...settings import EngineSettings, ModelSettings
from ..output.writer import Counts
from ..plan import Unit
from ..prepare import Prepared
from ..stopping import StopSignals
from .coordinator import Coordinator
from .devices import Place
from .local import LocalWorkers
from .messages import BadRow, Start
from .ray_cluster import inspect_in_cluster
from .ray_workers import RayWorkers


def inspect_for(places: Sequence[Place], model: ModelSettings, engine: EngineSettings) -> Any:
    """Inspects the model of workers as the first of them will see it. This process initializes no GPU.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: as `inspect_model`.
    """
    first = places[0]
    if first.reserved is not None:
        return inspect_in_cluster(first, model, engine)
    from ...llm import inspect_model

    if first.device == "cpu":  # the workers divide the memory of the machine
        engine = replace(engine, memory_share=engine.memory_share / len(places))
    if first.device is not None and model.strategy is None:
        engine = replace(engine, device=first.device if first.gpu is None else f"cuda:{first.gpu}")
    return inspect_model(model, engine, apart=True)


def serve_with_workers(
    prepared: Prepared,
    places: Sequence[Place],
    missing: Sequence[Unit],
    finished: int,
    stop: StopSignals,
    log: Callable[..., None],
    new_progress: Callable[[Counts, Callable[[], Any]], AbstractContextManager[Any]],
) -> BadRow | None:
    """Makes the parts of these units.

    Args:
        finished: rows of the units that have parts already.
        new_progress: shows progress, given the counters of rows and of the engines.

    Returns:
        The row at which the job has ended, under run.on_row_error: stop.
    """
    timeout = prepared.job.run.worker_timeout
    with stop.interruptible():
        starts, reserved = worker_starts(prepared, places), places[0].reserved
        workers = LocalWorkers(starts) if reserved is None else RayWorkers(starts, reserved)
    # A signal waits for the coordinator's next check, as an exception in the middle of a start would leave a process.
    coordinator = Coordinator(prepared.plan, missing, finished, workers, log, timeout, stop.check)
    with new_progress(coordinator.tally.counts, coordinator.tally.stats):
        coordinator.serve()
    return coordinator.bad_row


def worker_starts(prepared: Prepared, places: Sequence[Place]) -> list[Start]:
    """Returns what the workers at these places are started with."""
    job = prepared.job
    output = job.output.model_copy(update={"rows_per_part": prepared.plan.rows_per_part})
    model = job.model.model_copy(update={"sha256": None})  # the coordinator has compared it
    is_here = places[0].reserved is None
    if job.model.path != "demo" and is_here:  # an address is looked up once
        model = model.model_copy(update={"path": str(prepared.model.file.checkpoint.path)})
    starts = []
    for index, place in enumerate(places):
        engine = job.engine
        if place.device is not None and job.model.strategy is None:
            engine = engine.model_copy(update={"device": place.device})
        if place.device == "cpu":  # each would take the memory that is free when it starts
            plan = prepared.model.memory
            sizes = {"max_batch_size": plan.max_batch_size, "max_batch_tokens": plan.max_batch_tokens}
            engine = engine.model_copy(update=sizes)
        own = job.model_copy(update={"output": output, "model": model, "engine": engine})
        starts.append(
            Start(
                index,
                own,
                prepared.source,
                prepared.document,
                place.gpu,
                len(places) if is_here else 1,
                prepared.model.fingerprint if is_here else None,
                prepared.retry,
            )
        )
    return starts
