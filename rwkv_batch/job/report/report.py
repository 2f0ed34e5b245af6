"""The report of a job, made of its files: the parts, job.json and the event logs of all runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import ConfigurationError
from ...object_stores.urls import LOCAL, is_url
from ..folders import STATE_SUFFIX, Folders, absolute, check_reachable
from ..output.commit import UNREADABLE, part_name
from ..output.open_storage import open_storage
from ..output.storage import Storage
from ..state import read_job
from .events import read_events
from .history import Run, serving_seconds, shared_prefixes, timeline, utilisation
from .page import render
from .progress import RATES
from .score_conventions import conventions, empty_summary, shown_metric
from .scores import RESULTS as SCORES
from .scores import ScoreSummary

LABELS = ("status", "error_code", "finish_reason")
LENGTHS = {"generate": ("prompt_tokens", "completion_tokens"), "score": ("num_tokens",)}
"""Task → the columns with numbers of tokens."""
ALL_LENGTHS = (*LENGTHS["generate"], *LENGTHS["score"])
FIRST = {"generate": "sample_index", "score": "logprob"}
"""Task → the first of the columns that a job adds. Columns of the input with the name of another one come before it."""
SHOWN_GROUPS = 100
"""Groups of rows that a terminal shows."""

Report = dict[str, Any]


def write_report(storage: Storage, folders: Folders) -> Report:
    """Writes report.json and report.html into the state folder, and returns the report."""
    report = collect(storage, folders)
    plain = json.dumps(report, indent=1, ensure_ascii=False)
    for name, text in (("report.json", plain), ("report.html", render(report))):
        storage.atomic_write(folders.file(name), text.encode(errors="backslashreplace"))
    return report


def find_job(path: str) -> Folders:
    """Returns the folders of a job, given its output folder or its state folder.

    Raises:
        ConfigurationError: `path` belongs to no job, or its object store cannot be read.
        ResumeError: job.json is damaged.
    """
    path = absolute(path, "the folder") if is_url(path) else path.removeprefix(LOCAL)
    for state in (path, path.rstrip("/") + STATE_SUFFIX):
        storage = open_storage(state, state)
        check_reachable(Folders(state, state), storage)
        job = read_job(storage, state)
        if job is None:
            continue
        output = job["plan"].get("output.path")
        if output is None:
            return Folders(state.rstrip("/").removesuffix(STATE_SUFFIX), state)
        return Folders(output if is_url(output) else os.path.normpath(os.path.join(state, output)), state)
    raise ConfigurationError(f"got {path!r}, expected a job's output folder or state folder (job.json is missing)")


def collect(storage: Storage, folders: Folders) -> Report:
    """Returns the report. Rows of parts that are not published yet are not in it."""
    job = read_job(storage, folders.state)
    if job is None:
        raise ConfigurationError(f"{folders.file('job.json')} is missing; start the job again to write it")
    names = [part_name(index, job["plan"]["units"]) for index in range(job["plan"]["units"])]
    present = set(storage.list(folders.output))
    published = [name for name in names if name in present]
    runs = Run.all_of(read_events(storage, folders.state))
    scores = empty_summary(job["settings"], _group_by(runs))
    results = _results(storage, [os.path.join(folders.output, name) for name in published], job, scores)
    return {
        "output": folders.output,
        "complete": len(published) == len(names) and not results["damaged"],
        "parts": {"published": len(published), "planned": len(names)},
        "task": job["settings"]["task"],
        "rows_planned": job["plan"]["rows"],
        **results,
        **({"conventions": conventions(job["settings"])} if scores is not None else {}),
        "prefixes": shared_prefixes(runs),
        "utilisation": utilisation(runs),
        "runs": [run.describe() for run in runs],
        "serving_seconds": serving_seconds(runs),
        "timeline": timeline([run.samples for run in runs]),
        "job": job,
    }


def summarise(report: Report) -> list[str]:
    """Returns the report in a few lines for a terminal."""
    parts, rows, tokens = report["parts"], report["rows"], report["tokens"]
    seconds, used = report["serving_seconds"], report["utilisation"]
    none = "0" if report["complete"] else "none yet"
    speeds = [
        f"{sum(run[f'{kind}_tokens'] for run in report['runs']) / seconds if seconds else 0.0:,.0f} {kind}"
        for kind in RATES[report["task"]]
    ]
    lines = [
        f"{report['output']}: {parts['published']} of {parts['planned']} parts, {sum(rows.values()):,} rows",
        f"rows    {', '.join(f'{status} {count:,}' for status, count in rows.items()) or none}",
        f"tokens  {', '.join(f'{name} {count:,}' for name, count in tokens.items() if count)}",
        f"speed   {' and '.join(speeds)} tokens/s over {seconds:,.1f} s of serving",
        f"steps   slots in use {used['slots']:.1%}, tokens {used['step_tokens']:.1%} of what a step may have",
    ]
    if sharing := describe_sharing(report):
        lines.append(f"shared  {sharing}")
    lines += [f"score   {name} {shown_metric(metric)}" for name, metric in report["scores"].items()]
    lines += _groups(report)
    for name, error in report["damaged"].items():
        lines.append(f"damaged {name} cannot be read; start the job again to make it again ({error})")
    if report["errors"]:
        lines.append(f"errors  {', '.join(f'{code} {count:,}' for code, count in report['errors'].items())}")
    return lines


def describe_sharing(report: Report) -> str:
    """Returns in words what shared prefixes have saved; "" where they saved nothing."""
    requested, computed, seconds = report["prefixes"].values()
    if requested <= computed or not computed:
        return ""
    return (
        f"{requested:,} prompt tokens, {computed:,} of them computed ({requested / computed:.1f} times fewer): "
        f"about {seconds:,.1f} s saved"
    )


def first_rows(storage: Storage, folders: Folders, count: int) -> Iterator[dict[str, Any]]:
    """Yields the first `count` rows of the published parts. Parts that are damaged are left out."""
    for name in storage.list(folders.output):
        with suppress(*UNREADABLE), storage.open(os.path.join(folders.output, name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(max(1, count)):
                for record in batch.slice(0, count).to_pylist():
                    yield record
                    count -= 1
                if count <= 0:
                    return


def _groups(report: Report) -> Iterator[str]:
    """Yields a line for each group of rows of a score job, up to `SHOWN_GROUPS`."""
    groups = report.get("score_groups", {}).get("groups", {})
    for name, metrics in [*groups.items()][:SHOWN_GROUPS]:
        shown = ", ".join(f"{metric} {shown_metric(found)}" for metric, found in metrics.items())
        rows = max((found["rows"] for found in metrics.values()), default=0)
        yield f"group   {name} ({rows:,} rows): {shown}"
    if len(groups) > SHOWN_GROUPS:
        yield f"        and {len(groups) - SHOWN_GROUPS:,} more groups, see report.json"


def _group_by(runs: Sequence[Run]) -> str | None:
    """Returns the column by which the latest run of the job groups rows."""
    configs = [run.facts["config"] for run in runs if "config" in run.facts]
    found: str | None = configs[-1].get("score", {}).get("group_by") if configs else None
    return found


def _results(
    storage: Storage, paths: Iterable[str], job: dict[str, Any], scores: ScoreSummary | None
) -> dict[str, Any]:
    """Returns counts, tokens, scores and histograms over the rows of the parts, and which parts are damaged."""
    counts: dict[str, Counter[Any]] = {name: Counter() for name in (*LABELS, *ALL_LENGTHS)}
    damaged = {}
    for path in paths:
        try:
            found, scores = _count(storage, path, job.get("columns", {}), deepcopy(scores))
        except UNREADABLE as error:
            damaged[os.path.basename(path)] = str(error)
            continue
        for name, counter in found.items():
            counts[name].update(counter)
    return {
        "damaged": damaged,
        "rows": dict(counts["status"]),
        "errors": dict(counts["error_code"]),
        "finish_reasons": dict(counts["finish_reason"]),
        "tokens": {
            name: sum(length * times for length, times in counts[name].items())
            for name in LENGTHS[job["settings"]["task"]]
        },
        **_scores(scores),
        "length_histograms": {name: _histogram(counts[name]) for name in ALL_LENGTHS if counts[name]},
    }


def _scores(summary: ScoreSummary | None) -> dict[str, Any]:
    """Returns the metrics of all rows, and those of groups, where the job has them."""
    if summary is None:
        return {"scores": {}}
    groups = {"column": summary.group_by, "groups": summary.groups()}
    return {"scores": summary.metrics(), **({} if summary.group_by is None else {"score_groups": groups})}


def _count(
    storage: Storage, path: str, renamed: Mapping[str, str], scores: ScoreSummary | None
) -> tuple[dict[str, Counter[Any]], ScoreSummary | None]:
    """Counts the labels and lengths of one part, and adds its rows to the scores. Returns both.

    Args:
        renamed: column that the job adds → its name in the parts, where that is another one.
    """
    counts: dict[str, Counter[Any]] = {name: Counter() for name in (*LABELS, *ALL_LENGTHS)}
    own = dict.fromkeys((*LABELS, *ALL_LENGTHS, "sample_index", *(SCORES if scores else ())))
    with storage.open(path) as file:
        parquet = pq.ParquetFile(file)
        present = parquet.schema_arrow.names
        first = FIRST["score" if scores is not None else "generate"]
        added = present[present.index(renamed.get(first, first)) :]
        names = {name: renamed.get(name, name) for name in own if renamed.get(name, name) in added}
        passed = [name for name in (scores.passed if scores else ()) if name in present]
        for batch in parquet.iter_batches(columns=[*dict.fromkeys([*names.values(), *passed])]):
            results = batch.select([*names.values()]).rename_columns([*names])
            if scores is not None:
                scores.add(results, batch)
            for name in counts.keys() & names.keys():
                counts[name].update(_value_counts(results, name))
    return counts, scores


def _value_counts(batch: pa.RecordBatch, name: str) -> dict[Any, int]:
    column = batch[name]
    if name == "prompt_tokens":  # the samples of a row share its prompt
        column = column.filter(pc.equal(batch["sample_index"], 0))
    if pa.types.is_list(column.type):
        column = column.flatten()
    return {entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()}


def _histogram(lengths: Counter[int]) -> dict[str, int]:
    """Returns counts in bins that double in width: 0, 1, 2-3, 4-7, …"""
    bins: Counter[int] = Counter()
    for length, count in lengths.items():
        bins[length.bit_length()] += count
    return {_bin_name(size): bins[size] for size in range(min(bins), max(bins) + 1)}


def _bin_name(bits: int) -> str:
    low, high = (1 << bits) >> 1, (1 << bits) - 1
    return str(low) if low >= high else f"{low}-{high}"
