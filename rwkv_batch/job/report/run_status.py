"""The status of a run at one moment, and how metrics.prom holds it, in Prometheus' text format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..output.writer import Counts

RATES = {"generate": ("prompt", "completion"), "score": ("prompt", "scored")}
"""Task → kinds of tokens, whose rates are shown."""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run at one moment; steps and tokens are counted since this process started.

    Args:
        seconds: since the start of serving.
        rows_total: rows of this process's units.
        rows_resumed: rows that earlier runs have committed.
        rows_done: finished rows, `rows_resumed` included.
        rows_committed: rows that a crash cannot lose.
        errors: error rows of this run.
        slots_in_use: slots that hold a sequence.
        slots: of all engines.
        occupancy: mean share of the slots that were in use.
        steps: of all engines.
        recorded_steps: steps that were replayed from recordings.
        step_tokens: tokens of all steps, each of which may have `max_batch_tokens`.
        max_batch_tokens: of one step.
        requested_tokens: prompt tokens of all requests, as if no prefix were shared.
        prompt_tokens: prompt tokens computed.
        saved_seconds: estimate of the time that shared prefixes have saved.
        completion_tokens: tokens sampled.
        scored_tokens: tokens of continuations that have been scored.
        seconds_left: estimate of the seconds until all rows are done, those included in which slots become empty at the
            end; None while there is no basis for one.
    """

    seconds: float = 0.0
    rows_total: int = 0
    rows_resumed: int = 0
    rows_done: int = 0
    rows_committed: int = 0
    errors: int = 0
    slots_in_use: int = 0
    slots: int = 0
    occupancy: float = 0.0
    steps: int = 0
    recorded_steps: int = 0
    step_tokens: int = 0
    max_batch_tokens: int = 0
    requested_tokens: int = 0
    prompt_tokens: int = 0
    saved_seconds: float = 0.0
    completion_tokens: int = 0
    scored_tokens: int = 0
    seconds_left: float | None = None

    @classmethod
    def of(cls, seconds: float, counts: Counts, stats: Any) -> RunStatus:
        """The status by the counters of rows and those of engines (`EngineStats`). It has no `rows_total`."""
        return cls(
            seconds=seconds,
            rows_resumed=counts.resumed,
            rows_done=counts.done,
            rows_committed=counts.committed,
            errors=counts.errors,
            slots_in_use=stats.running,
            slots=stats.max_batch_size,
            occupancy=stats.occupancy.mean,
            steps=stats.steps,
            recorded_steps=stats.recorded_steps,
            step_tokens=stats.step_tokens,
            max_batch_tokens=stats.max_batch_tokens,
            requested_tokens=stats.requested_tokens,
            prompt_tokens=stats.prompt_tokens,
            saved_seconds=stats.saved_seconds,
            completion_tokens=stats.completion_tokens,
            scored_tokens=counts.scored_tokens,
        )


def metric_values(status: RunStatus, now: float) -> dict[str, float]:
    """Returns the values of the metrics: the keys are those of `METRICS`.

    Args:
        now: in seconds since 1970.
    """
    return {name: nan if value is None else value for name, value in {"time": now, **asdict(status)}.items()}


class Metric(NamedTuple):
    """A metric: its name without the prefix rwkv_batch_, its type, and what it is."""

    name: str
    kind: str
    help: str


METRICS = {
    "time": Metric("updated_timestamp_seconds", "gauge", "When these values were written, in seconds since 1970."),
    "seconds": Metric("serving_seconds_total", "counter", "Seconds since this run began to serve."),
    "rows_total": Metric("rows", "gauge", "Rows of the shard."),
    "rows_resumed": Metric("rows_resumed", "gauge", "Rows that earlier runs had committed."),
    "rows_done": Metric("rows_done", "gauge", "Finished rows, those of earlier runs included."),
    "rows_committed": Metric("rows_committed", "gauge", "Rows that a crash cannot lose."),
    "errors": Metric("errors_total", "counter", "Error rows of this run."),
    "slots_in_use": Metric("slots_in_use", "gauge", "Slots that hold a sequence."),
    "slots": Metric("slots", "gauge", "Slots of all engines."),
    "occupancy": Metric("occupancy", "gauge", "Mean share of the slots that were in use."),
    "steps": Metric("steps_total", "counter", "Steps of all engines."),
    "recorded_steps": Metric("recorded_steps_total", "counter", "Steps that were replayed from recordings, on a GPU."),
    "step_tokens": Metric("step_tokens_total", "counter", "Tokens of all steps."),
    "max_batch_tokens": Metric("max_batch_tokens", "gauge", "The most tokens of a step."),
    "requested_tokens": Metric("requested_tokens_total", "counter", "Prompt tokens of all requests."),
    "prompt_tokens": Metric("prompt_tokens_total", "counter", "Prompt tokens computed; shared prefixes count once."),
    "saved_seconds": Metric("saved_seconds", "gauge", "Estimate of the time that shared prefixes have saved."),
    "completion_tokens": Metric("completion_tokens_total", "counter", "Tokens sampled."),
    "scored_tokens": Metric("scored_tokens_total", "counter", "Tokens of continuations that have been scored."),
    "seconds_left": Metric("remaining_seconds", "gauge", "Estimate of the time until all rows of the shard are done."),
}
"""Field of `RunStatus`, or "time" → its metric. Counters begin at 0 in each run. What is not known is NaN."""

_FIELDS = {f"rwkv_batch_{metric.name}": field for field, metric in METRICS.items()}
_SAMPLE = re.compile(r'(rwkv_batch_\w+)\{job="(?:[^"\\]|\\.)*",shard="\d+/\d+"\} (\S+)')


def prometheus(values: Mapping[str, float], job: str, shard: str) -> bytes:
    """Returns values in Prometheus' text format.

    Args:
        values: those of the keys of `METRICS`.
        job: the label of this name: the name of the output folder.
        shard: the label of this name.
    """
    quoted = job.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for field, metric in METRICS.items():
        name = f"rwkv_batch_{metric.name}"
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        value = "NaN" if isnan(values[field]) else repr(values[field])
        lines.append(f'{name}{{job="{quoted}",shard="{shard}"}} {value}')
    return ("\n".join(lines) + "\n").encode(errors="backslashreplace")


def read_prometheus(text: str) -> dict[str, float]:
    """Reads what `prometheus` has written: key of `METRICS` → value. {} where a value is missing or damaged."""
    found = {}
    for match in map(_SAMPLE.fullmatch, text.splitlines()):
        if match and match[1] in _FIELDS:
            try:
                found[_FIELDS[match[1]]] = float(match[2])
            except ValueError:
                return {}
    return found if found.keys() == METRICS.keys() else {}
