"""The command `estimate`: what a job will cost, before it runs. Nothing is written."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from ..errors import ConfigurationError
from ..job.load import load_job
from ..job.prepare import Prepared, prepare
from ..job.workers.devices import Place, worker_places
from ..object_stores.urls import is_url
from ..rows import GenerateRow
from .estimate_disk import disk_of
from .estimate_earlier import Earlier, find_earlier
from .estimate_measure import Measured, measure
from .estimate_sample import Estimated, Sample, read_sample
from .estimate_time import Work

Found = dict[str, Any]

FEWEST_SAMPLES = 30
"""Finished completions whose mean says how long completions are."""


@dataclass(frozen=True)
class Options:
    """What the command line says besides the job.

    Args:
        devices: names of `rwkv_batch.roofline.cards.CARDS`, for each a prediction.
        is_measured: serve rows of the job for a while.
        mean_tokens: of a completion, where the user knows it.
    """

    devices: Sequence[str] = ()
    is_measured: bool = False
    mean_tokens: float | None = None


@dataclass(frozen=True)
class _Completions:
    """The tokens that a job samples.

    Args:
        kind: "upper bound", "given" or "earlier run".
        share: the expected tokens ÷ the most that are allowed.
        lengths: of the completions of the sampled rows.
    """

    total: Estimated
    kind: str
    share: float
    lengths: Sequence[int]


def estimate(job: str, overrides: Sequence[str], limit: int | None, options: Options) -> Found:
    """Estimates the cost of a job.

    Args:
        job, overrides, limit: as those of `run_job`.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, MissingExtraError: as `run_job`.
    """
    config = load_job(job, overrides, limit)
    if options.mean_tokens is not None and config.task == "score":
        raise ConfigurationError("--mean-completion-tokens: got it for task score, which samples no tokens")
    if options.is_measured and config.run.backend == "ray":
        raise ConfigurationError(
            "--measure: got a job with run.backend: ray, expected one whose workers are on this machine; measure on a "
            "node of the cluster with -o run.backend=local"
        )
    places = worker_places(config)
    prepared = prepare(config, _inspection(places))
    sample = read_sample(prepared)
    earlier = find_earlier(prepared)
    completions = None if config.task == "score" else _completions(sample, options.mean_tokens, earlier)
    found = {
        "job": job,
        "task": config.task,
        "model": config.model.path,
        "rows": sample.num_rows,
        "sample": {"rows": sample.num_read, "windows": len(sample.windows), "whole": sample.is_whole},
        "error_rows": {**_error_rows(sample).described(), "sampled": dict(sample.errors)},
        **_tokens(sample, completions),
        "parts": {"count": prepared.plan.num_units, "rows_per_part": prepared.plan.rows_per_part},
        "workers": 1 if places is None else len(places),
        "memory": _memory(prepared),
        "disk": _disk(prepared, sample, completions),
    }
    time: Found = {"earlier": None if earlier is None else _of_earlier(earlier, sample.num_rows)}
    time["measured"] = _measured(prepared, sample, completions, places) if options.is_measured else None
    time["predicted"] = _predicted(prepared, sample, completions, options.devices)
    return {**found, "time": time}


def _inspection(places: Sequence[Place] | None) -> Any:
    """Returns what inspects the model. No GPU is initialized in this process."""
    if places is None:
        from ..llm import inspect_model

        return partial(inspect_model, apart=True)
    from ..job.workers.serve import inspect_for

    return partial(inspect_for, places)


def _completions(sample: Sample, mean_tokens: float | None, earlier: Earlier | None) -> _Completions:
    """The tokens to sample: as the user says, as earlier runs have it, or the most that are allowed."""
    limits = [request.params.token_limit for request in sample.requests]
    most, kind, expected = sample.total("most_completion_tokens"), "upper bound", None
    if mean_tokens is not None:
        kind, expected = "given", mean_tokens
    elif earlier is not None and earlier.samples >= FEWEST_SAMPLES:
        kind, expected = "earlier run", earlier.mean_tokens
    if expected is None or not limits or not sum(limits):
        return _Completions(most, kind, 1.0, limits)
    lengths = [min(limit, max(1, round(expected))) for limit in limits]
    share = min(1.0, sum(min(limit, expected) for limit in limits) / sum(limits))
    return _Completions(most.times(share), kind, share, lengths)


def _error_rows(sample: Sample) -> Estimated:
    """The number of error rows. Where none was seen, up to three times as many as one in the sample would mean."""
    found = sample.total("error_rows")
    if sample.is_whole or found.value:
        return found
    return found._replace(high=3 * sample.num_rows / sample.num_read)


def _tokens(sample: Sample, completions: _Completions | None) -> Found:
    """The numbers of samples and tokens."""
    names = ["requested_tokens", "computed_tokens"]
    names += ["context_tokens", "scored_tokens"] if completions is None else ["samples", "prompt_tokens"]
    found: Found = {name: sample.total(name).described() for name in names}
    if completions is not None:
        found["completion_tokens"] = {**completions.total.described(), "kind": completions.kind}
    return found


def _memory(prepared: Prepared) -> Found:
    plan = prepared.model.memory
    return {
        "plan": str(prepared.model.memory_plan),
        "slots": prepared.model.num_slots,
        "step_tokens": plan.max_batch_tokens,
        "bytes": plan.total,
        "available_bytes": plan.available,
    }


def _disk(prepared: Prepared, sample: Sample, completions: _Completions | None) -> Found:
    found = disk_of(prepared, sample, 1.0 if completions is None else completions.share)
    return {
        "output_bytes": None if found is None else round(found.parts),
        "segment_bytes": None if found is None else round(found.segments),
        "free_bytes": _free(prepared.folders.output),
        "kind": "estimate" if completions is None else completions.kind,
        "records": 0 if found is None else found.records,
    }


def _free(folder: str) -> int | None:
    """Free bytes of the disk on which a folder will be; None in an object store."""
    if is_url(folder):
        return None
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def _of_earlier(earlier: Earlier, num_rows: int) -> Found:
    return {
        "output": earlier.output,
        "trial": earlier.is_trial,
        "rows": earlier.rows,
        "serving_seconds": earlier.seconds,
        "hosts": list(earlier.hosts),
        "completions": earlier.samples,
        "mean_completion_tokens": earlier.mean_tokens,
        "seconds": earlier.seconds_of(num_rows),
    }


def _work(sample: Sample, completions: _Completions | None, computed_tokens: float) -> Work:
    if completions is None:
        return Work(computed_tokens, 0, [])
    return Work(computed_tokens, round(sample.total("samples").value), completions.lengths)


def _predicted(
    prepared: Prepared, sample: Sample, completions: _Completions | None, devices: Sequence[str]
) -> list[Found]:
    """The prediction for each card. Empty where none is asked for."""
    if not devices or not sample.rows:
        return []
    from ..roofline.cards import CARDS

    if problem := _unpredictable(prepared):
        return [{"device": name, "card": CARDS[name].name, "problem": problem} for name in devices]
    from .estimate_devices import Requests, predicted

    count = round(sample.total("requests").value)
    scored = sample.total("scored_tokens").value / max(count, 1) if completions is None else 0
    requests = Requests(
        _work(sample, completions, sample.total("computed_tokens").value), count, max(1, round(scored)) if scored else 0
    )
    found = []
    for name in devices:
        one = predicted(name, prepared.model.file, prepared.job, requests)
        about: Found = {"device": name, "card": one.card.name, "problem": one.problem or None}
        if one.times is not None:
            about |= {
                "slots": one.slots,
                "seconds": one.seconds,
                "tokens_per_second": _rate(requests.work, one.seconds),
                "sources": dict(one.card.sources),
            }
        found.append(about)
    return found


def _unpredictable(prepared: Prepared) -> str:
    """Why no time can be predicted; "" where one can."""
    if prepared.job.model.strategy is not None:
        return "model.strategy places layers one by one"
    try:
        from ..triton_kernels.launch import is_interpreted
    except ImportError:  # Triton is for Linux
        return "a prediction needs the package triton"
    return "Triton interprets kernels here; unset TRITON_INTERPRET" if is_interpreted() else ""


def _rate(work: Work, seconds: float) -> float:
    """Sampled tokens/s; of a job that only scores, computed tokens/s."""
    tokens = work.num_sequences * work.mean_length if work.num_sequences else work.computed_tokens
    return tokens / seconds if seconds else 0.0


def _measured(
    prepared: Prepared, sample: Sample, completions: _Completions | None, places: Sequence[Place] | None
) -> Found:
    """The time of the job by a short run on this machine."""
    if not sample.given:
        raise ConfigurationError("--measure: each row that was read is an error; there is nothing to serve")
    print("serving rows of the job for half a minute; nothing is written", file=sys.stderr, flush=True)
    engines = _engines(places, prepared.plan.num_units)
    tokens = sample.total("computed_tokens")
    works = [_work(sample, completions, one).divided_by(engines) for one in (tokens.value, tokens.low, tokens.high)]
    count = round(sample.total("requests").value / engines)
    slots = max(1, min(prepared.model.num_slots, count))
    made = measure(prepared, sample.given, slots)
    value = median(times.seconds(works[0], slots) for times in made.rounds)
    low = min(times.seconds(works[1], slots) for times in made.rounds)
    high = max(times.seconds(works[2], slots) for times in made.rounds)
    return {
        "seconds": value,
        "low": low,
        "high": high + _last_one(made, completions),
        "engines": engines,
        "load_seconds": made.load_seconds,
        "slots": slots,
        "prompt_tokens_per_second": median(1 / times.prompt_token for times in made.rounds),
        "decode_tokens_per_second": None
        if completions is None
        else median(slots / times.decode[slots] for times in made.rounds),
        "measured_seconds": made.seconds,
        "measured_prompt_tokens": made.prompt_tokens,
        "measured_completion_tokens": made.completion_tokens,
        "constraints": _has_constraints(sample),
    }


def _engines(places: Sequence[Place] | None, parts: int) -> int:
    """Over how many engines the time is divided: workers with a GPU each, if there are parts for all of them.

    Workers on a CPU share the cores on which one engine is measured.
    """
    if places is None or any(place.gpu is None for place in places):
        return 1
    return min(len(places), parts)


def _last_one(made: Measured, completions: _Completions | None) -> float:
    """Seconds in which one completion alone may go on to its limit, where completions are expected to be shorter."""
    if completions is None or completions.share == 1.0 or not completions.lengths:
        return 0.0
    mean = sum(completions.lengths) / len(completions.lengths)
    return (mean / completions.share - mean) * max(times.decode[min(times.decode)] for times in made.rounds)


def _has_constraints(sample: Sample) -> bool:
    return any(
        isinstance(row, GenerateRow) and (row.params.json_schema or row.params.regex or row.params.grammar) is not None
        for row in sample.given
    )
