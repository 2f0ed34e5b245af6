"""What earlier runs of a job tell of its cost: the job's own, and trials with --limit."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import Any

from ..errors import ResumeError
from ..job.folders import STATE_SUFFIX, Folders
from ..job.prepare import Prepared
from ..job.report.report import collect
from ..job.state import read_job


@dataclass(frozen=True)
class Earlier:
    """Finished rows of this job, or of a trial of it.

    Args:
        output: the folder with their parts.
        is_trial: they are a trial's.
        rows: input rows that the runs have served.
        seconds: of serving them.
        samples, mean_tokens: completions in parts, and their mean tokens; 0 for a job that scores.
        hosts: the machines of the runs.
    """

    output: str
    is_trial: bool
    rows: int
    seconds: float
    samples: int
    mean_tokens: float
    hosts: tuple[str, ...]

    def seconds_of(self, rows: int) -> float | None:
        """The seconds that so many rows take at the same rate; None where nothing was timed."""
        return rows * self.seconds / self.rows if self.rows and self.seconds else None


def find_earlier(prepared: Prepared) -> Earlier | None:
    """Returns the earlier run with the most finished rows; None where there is none with the same settings.

    Settings that change no result, such as the device, may differ.
    """
    folders, own = prepared.folders, prepared.folders.state
    trials = glob.glob(f"{glob.escape(folders.output)}-limit-*{STATE_SUFFIX}")
    found = [_run(prepared, folders, is_trial=False)]
    found += [
        _run(prepared, Folders(state.removesuffix(STATE_SUFFIX), state), is_trial=True)
        for state in sorted(trials)
        if state != own
    ]
    return max((one for one in found if one is not None), key=lambda one: one.rows, default=None)


def _run(prepared: Prepared, folders: Folders, is_trial: bool) -> Earlier | None:
    storage = folders.open_storage()
    try:
        job = read_job(storage, folders.state)
    except ResumeError:
        return None
    if job is None or _results(job["settings"]) != _results(prepared.document["settings"]):
        return None
    report = collect(storage, folders)
    rows = sum(run["rows"] for run in report["runs"])
    if not report["parts"]["published"]:
        return None
    lengths = report["lengths"].get("completion_tokens", {})
    hosts = (run.get("machine", {}).get("host") for run in report["runs"])
    return Earlier(
        folders.output,
        is_trial,
        rows,
        report["serving_seconds"],
        lengths.get("count", 0),
        lengths.get("mean", 0.0),
        tuple(dict.fromkeys(host for host in hosts if host)),
    )


def _results(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that change results, without the columns that parts repeat."""
    return {name: value for name, value in settings.items() if not name.startswith("output.")}
