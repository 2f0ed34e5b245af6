"""The command `report`: a job in a few lines or as JSON, its report written again, and its first results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ConfigurationError
from ..job.messages import printable
from ..job.report.examples import first_rows
from ..job.report.report import as_json, collect, find_job, save
from ..job.report.summary import summarise


def report(out: str, *, show: int, status: str | None, is_json: bool) -> Iterator[str]:
    """Writes report.json and report.html of a job again, and yields what is printed.

    Args:
        out: the job's output folder, its state folder or its job file.
        show: so many of the first rows of the output.
        status: of these rows; None: of any status.
        is_json: the content of report.json, and nothing else.

    Raises:
        ConfigurationError, ResumeError: there is no such job, or job.json is damaged.
        OSError: a folder cannot be read. Files that cannot be written are a line on standard error.
    """
    if is_json and show:
        raise ConfigurationError("--show: got it with --json, which prints the content of report.json and nothing else")
    folders = find_job(out)
    storage = folders.open_storage()
    found = collect(storage, folders)
    yield as_json(found) if is_json else printable("\n".join(summarise(found)))
    try:
        save(found, storage, folders)
    except OSError as error:
        print(printable(f"report.json and report.html were not written: {error}"), file=sys.stderr)
    for record in first_rows(storage, folders, show, status, found["job"].get("columns", {})):
        yield f"\n{_row(record)}"


def _row(record: Mapping[str, Any]) -> str:
    return printable("\n".join(f"{name}: {value}" for name, value in record.items() if value is not None))
