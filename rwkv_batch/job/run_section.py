"""The section `run` of a job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .ray_section import RaySection
from .section import Count, Path, Seconds, Section, setting

Device = Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")]


class RunSection(Section):
    """The run: state folder, bad rows and workers."""

    state_dir: Path | None = setting(
        None,
        "The state folder: progress, unpublished rows and reports. It must not be inside the output folder.",
        "a folder as that of output.path, or null for the output folder's name with .rwkv_batch added",
    )
    segments: Literal["store", "scratch"] = setting(
        "store",
        "Where finished rows lie until their part is made, if the state folder is in an object store. `store`: there. "
        "`scratch`: on this machine's disk, below the cache folder (XDG_CACHE_HOME), which saves a request every "
        "`flush_seconds`; without this machine they are computed again. A state folder on a disk holds them itself.",
    )
    on_row_error: Literal["continue", "stop"] = setting(
        "continue",
        "What a bad row does. `continue`: its output row gets status `error`. `stop`: the run ends at the first one.",
    )
    backend: Literal["local", "ray"] = setting(
        "local",
        "Where the job runs. `local`: on this machine; `ray`: in a cluster of Ray, with an actor for each worker.",
    )
    workers: Literal["auto"] | Count = setting(
        "auto",
        "The number of workers: processes with an engine each, which divide the parts among them. Each has a GPU of "
        "its own, or a share of the CPU's cores. `auto` is one for each GPU; on a CPU, or where there is one GPU, the "
        "job's own process serves. With `backend: ray` it is one for each GPU of the cluster, or for each node if it "
        "has none.",
        "auto or an integer from 1",
    )
    devices: Literal["auto"] | Annotated[list[Device], Field(min_length=1)] = setting(
        "auto",
        "The workers' devices. `auto` takes all GPUs that `engine.device` allows, or the CPU.",
        "auto, or a list such as [cuda:0, cuda:1]",
    )
    worker_timeout: Seconds = setting(
        1800.0,
        "Seconds without a step after which an engine counts as hanging. A worker is replaced; the job's own process "
        "ends.",
        "a number of seconds above 0",
    )
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = setting(
        None,
        "A port of 127.0.0.1 where Prometheus reads the progress while the job runs. It needs the extra `metrics`.",
        "a port from 1 to 65535, or null",
    )
    ray: RaySection = RaySection()
