"""The section `run.ray` of a job file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .section import Section
from .section import setting as _setting

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=False)]


class RaySection(Section):
    """A cluster of Ray, and what each worker reserves of it."""

    address: str | None = _setting(
        None,
        "The address of the cluster. null takes the cluster in which this process runs, or starts one on this machine.",
        "auto, an address such as 10.0.0.1:6379, or null",
    )
    num_gpus: Amount | None = _setting(
        None,
        "GPUs of a worker. null is 1 where the cluster has GPUs at the start and `engine.device` is not `cpu`, else 0; "
        "give 1 where nodes with GPUs come later.",
        "a number from 0, or null",
    )
    num_cpus: Amount | None = _setting(
        None,
        "CPUs of a worker, which are its threads. null is 1 beside a GPU, else all CPUs of the smallest node.",
        "a number from 0, or null",
    )
    resources: dict[str, Amount] = _setting({}, "Other resources of a worker.", "a map from name to number")
    runtime_env: dict[str, Any] = _setting(
        {}, "Ray's runtime environment of workers. It is written into job.json, the log and the report.", "a map"
    )
