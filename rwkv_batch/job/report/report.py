"""The report of a job, made of its files: the parts, job.json and the event logs of all runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any

from ...errors import ConfigurationError
from ...object_stores.urls import LOCAL, is_url
from ..claim import read_claims
from ..folders import STATE_SUFFIX, Folders, absolute, check_reachable
from ..load import load_job
from ..output.commit import READERS, UNREADABLE, part_name
from ..output.open_storage import open_storage
from ..output.storage import Storage
from ..state import read_job
from .advice import warnings_of
from .choices import ChoiceSummary
from .claims import settle
from .error_codes import ERROR_CODES
from .events import read_events
from .examples import Examples
from .history import Run, marks, serving_seconds, shared_prefixes, sources, timeline, unrecorded_steps, utilisation
from .phases import tracks
from .score_conventions import conventions, empty_summary, kind_of
from .tally import LENGTHS, PartRows, Tally

FORMAT = 2
"""The version of report.json: a number that grows when a key changes its meaning or goes away."""
DEFAULTS = {"show_text": False, "samples": 10}
"""The section `report` of a job that an earlier version has run."""
MOST_READ_ROWS = 1_000_000
"""Input rows whose counted columns are in memory at the same time; but one part at least."""

Report = dict[str, Any]

logger = logging.getLogger(__name__)


def write_report(storage: Storage, folders: Folders) -> Report:
    """Writes report.json and report.html into the state folder, and returns the report.

    Raises:
        OSError: a file cannot be written.
    """
    report = collect(storage, folders)
    save(report, storage, folders)
    return report


def save(report: Report, storage: Storage, folders: Folders) -> None:
    """Writes a report into the state folder, as report.json and report.html."""
    from .page import render  # jinja2 is not needed before

    for name, text in (("report.json", as_json(report)), ("report.html", render(report))):
        storage.atomic_write(folders.file(name), text.encode(errors="backslashreplace"))


def as_json(report: Report) -> str:
    """Returns the content of report.json."""
    return json.dumps(report, indent=1, ensure_ascii=False)


def find_job(path: str) -> Folders:
    """Returns the folders of a job, given its output folder, its state folder or its job file.

    Raises:
        ConfigurationError: `path` belongs to no job, or its object store cannot be read; or the job file is wrong, or
            the job has not run yet.
        ResumeError: job.json is damaged.
    """
    if not is_url(path) and os.path.isfile(path):
        return _find_job_of_file(path)
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
    raise ConfigurationError(
        f"got {path!r}, expected a job's output folder or state folder, as output.path or run.state_dir of a job file "
        f"names it, or the job file (job.json is missing in {path!r} and in {path.rstrip('/') + STATE_SUFFIX!r})"
    )


def _find_job_of_file(path: str) -> Folders:
    """Returns the folders of the job that a job file describes."""
    folders = Folders.of(load_job(path))
    storage = open_storage(folders.state, folders.state)
    check_reachable(Folders(folders.state, folders.state), storage)
    if read_job(storage, folders.state) is None:
        raise ConfigurationError(
            f"{path}: this job has not run yet ({folders.file('job.json')} is missing); run it first, or give the "
            "output folder of a run with other settings, such as a trial with --limit"
        )
    return find_job(folders.state)


def collect(storage: Storage, folders: Folders) -> Report:
    """Returns the report. Rows of parts that are not published yet are not in it."""
    job = read_job(storage, folders.state)
    if job is None:
        raise ConfigurationError(f"{folders.file('job.json')} is missing; start the job again to write it")
    present = set(storage.list(folders.output))
    planned = [part_name(index, job["plan"]["units"]) for index in range(job["plan"]["units"])]
    published = {index: name for index, name in enumerate(planned) if name in present}
    runs = Run.all_of(read_events(storage, folders.state))
    config = _latest_config(runs)
    shown = {**DEFAULTS, **config.get("report", {})}
    tally, damaged = _count(storage, folders, job, published, _empty_tally(job, config, shown["samples"]))
    examples = Examples(storage, job, config, shown["show_text"])
    report = {
        "format": FORMAT,
        "name": os.path.basename(folders.output.rstrip("/")),
        "output": folders.output,
        "complete": len(published) == len(planned) and not damaged,
        "parts": {"published": len(published), "planned": len(planned)},
        "task": tally.task,
        "rows_planned": job["plan"]["rows"],
        "damaged": damaged,
        **_counts(tally),
        "error_rows": _error_rows(tally, examples),
        "samples": examples.results(tally.samples) if shown["show_text"] else [],
        **({"conventions": conventions(job["settings"])} if tally.scores is not None else {}),
        "prefixes": shared_prefixes(runs),
        "utilisation": utilisation(runs),
        "unrecorded_steps": unrecorded_steps(runs),
        "runs": settle([run.describe() for run in runs], dict(read_claims(storage, folders.state))),
        "loading_seconds": sum(run.loading_seconds for run in runs),
        "serving_seconds": serving_seconds(runs),
        "phases": tracks(runs),
        "timeline": timeline([source.served for source in sources(runs)]),
        "marks": marks(runs),
        "job": job,
    }
    return {**report, "warnings": warnings_of(report)}


def _latest_config(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the settings of the latest run that has recorded them, section by section; {} where none has."""
    configs = [run.facts["config"] for run in runs if "config" in run.facts]
    return configs[-1] if configs else {}


def _empty_tally(job: Mapping[str, Any], config: Mapping[str, Any], samples: int) -> Tally:
    """Returns the counts of no rows."""
    settings = job["settings"]
    scores = empty_summary(settings, config.get("score", {}).get("group_by"))
    choices = None
    if scores is not None and kind_of(settings) == "choices":
        kind, given = settings.get("score.answer", "auto"), settings.get("score.choices")
        columns = [settings.get(f"input.columns.{role}") for role in ("answer", "choices")]
        choices = ChoiceSummary(columns[0], "index" if kind == "auto" else kind, given or columns[1])
    return Tally(settings["task"], scores, choices, samples)


def _count(
    storage: Storage, folders: Folders, job: Mapping[str, Any], published: Mapping[int, str], tally: Tally
) -> tuple[Tally, dict[str, str]]:
    """Returns the counts over the rows of the parts, and which parts are damaged: part → what is wrong.

    Args:
        published: the numbers of the units that have a part → its name.
    """
    damaged = {}
    rows_per_part = job["plan"]["output.rows_per_part"]
    paths = {unit: os.path.join(folders.output, name) for unit, name in published.items()}
    read = partial(tally.read_part, storage, renamed=job.get("columns", {}))
    for unit, rows in _reads(read, paths, max(1, min(READERS, MOST_READ_ROWS // rows_per_part))):
        counted = deepcopy(tally)
        try:
            counted.add_part(rows.result(), unit * rows_per_part)
        except UNREADABLE as error:
            damaged[published[unit]] = str(error)
        else:
            tally = counted
    return tally, damaged


def _reads(
    read: Callable[[str], PartRows], paths: Mapping[int, str], at_once: int
) -> Iterator[tuple[int, Future[PartRows]]]:
    """Reads parts, `at_once` of them at a time. Yields the number of each unit and what was read of its part."""
    units = list(paths)
    with ThreadPoolExecutor(at_once, "rwkv_batch-report") as executor:
        for start in range(0, len(units), at_once):
            group = units[start : start + at_once]
            yield from zip(group, [executor.submit(read, paths[unit]) for unit in group], strict=True)


def _counts(tally: Tally) -> dict[str, Any]:
    """Returns the counts for the report."""
    present = {name: lengths for name, lengths in tally.lengths.items() if lengths.count}
    scores = tally.scores
    choices = tally.choices.describe() if tally.choices else {}
    groups = {} if scores is None or scores.group_by is None else {"column": scores.group_by, "groups": scores.groups()}
    return {
        "rows": dict(tally.labels["status"]),
        "input_rows": dict(tally.rows),
        "errors": dict(tally.labels["error_code"].most_common()),
        "finish_reasons": dict(tally.labels["finish_reason"].most_common()),
        "tokens": {name: tally.lengths[name].total for name in LENGTHS[tally.task]},
        "scores": {} if scores is None else scores.metrics(),
        **({"score_groups": groups} if groups else {}),
        **({"choices": choices} if choices else {}),
        "length_histograms": {name: lengths.doubling_bins() for name, lengths in present.items()},
        "lengths": {name: {**lengths.describe(), "bins": lengths.equal_bins()} for name, lengths in present.items()},
    }


def _error_rows(tally: Tally, examples: Examples) -> dict[str, Any]:
    """Returns for each error code its count, what to do about it, and its first rows."""
    return {
        code: {
            "count": count,
            "do": ERROR_CODES[code].plain_advice if code in ERROR_CODES else "",
            "first_rows": examples.errors(tally.errors.get(code, [])),
        }
        for code, count in tally.labels["error_code"].most_common()
    }
