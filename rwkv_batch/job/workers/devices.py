"""How many workers a job has on this machine, and on which devices."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...errors import ConfigurationError
from ...models.strategy import devices_named
from ..config import JobConfig
from ..messages import shown


class Reservation(NamedTuple):
    """What a worker in a cluster of Ray reserves of its node, with Ray's names."""

    num_gpus: float
    num_cpus: float
    resources: dict[str, float]
    runtime_env: dict[str, Any]


class Place(NamedTuple):
    """Where a worker runs.

    Args:
        device: "cpu", "cuda", or None: as the settings of the engine say.
        gpu: number of the GPU; None without one.
        reserved: in a cluster of Ray, on a node that has this; None on this machine.
    """

    device: str | None = None
    gpu: int | None = None
    reserved: Reservation | None = None


def worker_places(job: JobConfig) -> list[Place] | None:
    """Returns the place of each worker of a job; None where the job's own process serves.

    Asks how many GPUs there are, and initializes none.

    Raises:
        ConfigurationError: the settings contradict each other, or there are fewer GPUs than workers.
    """
    run = job.run
    if run.backend == "ray":
        from .ray_cluster import ray_places

        return ray_places(job)
    names = devices_named(job.engine.device, job.model.strategy)
    if len(names) > 1 or names[0] not in ("auto", "cuda", "cpu"):
        _check_single(job)
        return None if run.workers == "auto" else [Place()]
    devices = _devices(job, names[0])
    if not devices:
        return None if run.workers == "auto" else [Place("cpu")] * run.workers
    if run.workers == "auto" and run.devices == "auto" and len(devices) == 1:
        return None
    count = len(devices) if run.workers == "auto" else run.workers
    if count > len(devices):
        raise ConfigurationError(
            f"run.workers: got {count}, expected at most {len(devices)}, the number of GPUs; check run.devices and "
            "CUDA_VISIBLE_DEVICES"
        )
    return [Place("cuda", index) for index in devices[:count]]


def _check_single(job: JobConfig) -> None:
    """Checks that no setting asks for several workers, where the engine's settings name the devices of one."""
    setting = "engine.device" if job.model.strategy is None else "model.strategy"
    given = job.engine.device if job.model.strategy is None else job.model.strategy
    for name, value in (("run.workers", job.run.workers), ("run.devices", job.run.devices)):
        if value != "auto" and value != 1:
            raise ConfigurationError(
                f"{name}: got {shown(value)} beside {setting}: {given}, which names the devices of one worker; name "
                "'cuda' or 'cpu' alone there, or leave this setting out"
            )


def _devices(job: JobConfig, kind: str) -> list[int]:
    """Returns the GPUs of the workers; none where they run on a CPU.

    Args:
        kind: of the devices that the engine's settings allow: "auto", "cuda" or "cpu".
    """
    gpus = [] if kind == "cpu" else [*range(_num_gpus())]
    given = job.run.devices
    if given == "auto":
        return gpus
    known = [f"cuda:{index}" for index in gpus] + ["cpu"] * (kind != "cuda")
    if unknown := [device for device in given if device not in known]:
        raise ConfigurationError(
            f"run.devices: got {unknown[0]}, expected devices of this machine that the engine's settings allow: "
            f"{', '.join(known) or 'there are none'}"
        )
    if len(set(given)) < len(given) or ("cpu" in given and len(given) > 1):
        raise ConfigurationError(
            f"run.devices: got {shown(given)}, expected each GPU once, or cpu alone; run.workers says how many "
            "workers share a CPU"
        )
    return [int(device.removeprefix("cuda:")) for device in given if device != "cpu"]


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
