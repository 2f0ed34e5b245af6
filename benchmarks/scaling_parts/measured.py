"""The costs of a job beside the steps of its workers, and where each figure comes from."""

from __future__ import annotations

from typing import Any, NamedTuple

from rwkv_batch.job.output.commit import READERS

from .described import Costs


class Figure(NamedTuple):
    """A default of the simulation.

    Args:
        source: the command that measures it, or what it was assumed for.
    """

    value: float
    source: str


COORDINATOR = "python -m benchmarks.scaling costs: processor time of a coordinator that hears two workers"
REQUESTS = "python -m benchmarks.scaling costs: requests counted with moto's S3 server"
MEASURED: dict[str, Figure] = {
    "request_seconds": Figure(0.1, "assumed: a request to a store in another region"),
    "survey_requests": Figure(0, f"{REQUESTS}; a job that has no parts yet"),
    "finish_requests": Figure(6, f"{REQUESTS}; parts above 1 MiB"),
    "requests_at_once": Figure(READERS, "rwkv_batch.job.output.commit: READERS, for the parts and for their report"),
    "take_requests": Figure(1, REQUESTS),
    "publish_requests": Figure(6, REQUESTS),
    "segment_requests": Figure(2, REQUESTS),
    "publish_row_seconds": Figure(50e-6, "assumed; python -m benchmarks.scaling workers: 150e-6 with the machine busy"),
    "flush_seconds": Figure(30, "the default of output.flush_seconds"),
    "read_ahead": Figure(8192, "rwkv_batch.engine: 4 × slots are read ahead, and 2 to 6 × slots are queued"),
    "unit_seconds": Figure(210e-6, COORDINATOR),
    "message_seconds": Figure(6e-6, COORDINATOR),
    "row_seconds": Figure(0.2e-6, COORDINATOR),
    "report_row_seconds": Figure(0.25e-6, "python -m benchmarks.scaling costs: processor time to count a part"),
}
"""Field of `Costs` → its default."""


def measured_costs(changes: dict[str, float]) -> Costs:
    """Returns the measured costs, some of them replaced."""
    values: dict[str, Any] = {**{name: figure.value for name, figure in MEASURED.items()}, **changes}
    return Costs(**{**values, "read_ahead": int(values["read_ahead"])})
