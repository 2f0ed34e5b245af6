"""The state folder: job.json, which is written once, and the check that a later run is the same job."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import ResumeError
from .fingerprint import FORMER_ROUNDING, HALF_STATES, PASSED, differences, with_passed_columns
from .folders import Folders
from .input.files import InputFile
from .output.storage import Storage

logger = logging.getLogger(__name__)

LATE_SECONDS = 0.1
MANIFEST_KEYS = {"file", "rows", "bytes", "version"}
"""Keys of a file's entry in the input's manifest."""
JOB_KEYS = {"settings": dict, "plan": dict, "input": list, "fingerprint": str}
"""Key that a later run reads from job.json → the type of its value."""


def read_job(storage: Storage, state: str) -> dict[str, Any] | None:
    """Returns the content of a state folder's job.json; None where there is no such file.

    Raises:
        ResumeError: job.json is damaged.
    """
    path = os.path.join(state, "job.json")
    try:
        with storage.open(path) as file:
            job = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        job = None
    if not _is_job(job):
        raise ResumeError(
            f"{path} is damaged, expected a JSON object with {', '.join(JOB_KEYS)}; put a copy of it back, "
            "or remove this folder and the job's output folder to start over"
        )
    return job


def _is_job(job: Any) -> bool:
    """Whether this is the content of a job.json of any version."""
    if not isinstance(job, dict) or not all(isinstance(job.get(key), kind) for key, kind in JOB_KEYS.items()):
        return False
    numbers = (job["plan"].get("rows"), job["plan"].get("units"))
    return (
        re.fullmatch("[0-9a-f]{64}", job["fingerprint"]) is not None
        and "task" in job["settings"]
        and isinstance(job.get("columns", {}), dict)
        and all(isinstance(number, int) for number in numbers)
        and all(_is_entry(entry) for entry in job["input"])
    )


def _is_entry(entry: Any) -> bool:
    """Whether this describes a file in a manifest of any version."""
    is_known = isinstance(entry, dict) and entry.keys() >= MANIFEST_KEYS
    return is_known and isinstance(entry["version"], str | None) and isinstance(entry.get("stamp"), str | None)


def compare_job(
    storage: Storage, folders: Folders, document: Mapping[str, Any], files: Sequence[InputFile]
) -> dict[str, Any] | None:
    """Returns the content of the state folder's job.json, if it is this job's; None where there is no such file.

    While no part is published, the columns that parts repeat may differ: what is returned has the present ones.

    Args:
        document: the content of this job's job.json: "settings", "plan", "input" (the manifest), "backends", and more.
        files: the input, in the order of the manifest.

    Raises:
        ResumeError: job.json has other settings, another plan or another input, or is damaged.
    """
    started = read_job(storage, folders.state)
    if started is None:
        return None
    changes = _input_changes(started["input"], document["input"], files)
    if changes:
        raise ResumeError(_refusal("the input changed since the run started", changes, folders))
    settings = with_passed_columns(started["settings"], document["settings"])
    hint = ""
    if settings[PASSED] != document["settings"][PASSED]:
        if has_parts(storage, folders):
            hint = f" ({PASSED} may change only until the first part is published)"
        else:
            settings[PASSED] = document["settings"][PASSED]
            started = {**started, "settings": settings}
    changes = differences(settings, document["settings"]) + differences(started["plan"], document["plan"])
    if changes:
        raise ResumeError(_refusal(f"{folders.output} was started with other settings{hint}", changes, folders))
    return started


def check_rules(lines: Sequence[str], folders: Folders) -> None:
    """Raises ResumeError where rows that are missing would be served by other rules than those that are there.

    Args:
        lines: of `fingerprint.other_rules`.
    """
    if lines:
        raise ResumeError(_refusal(f"{folders.output} was started by a version with other constraints", lines, folders))


def has_parts(storage: Storage, folders: Folders) -> bool:
    """Whether a part is published."""
    return num_parts(storage, folders) > 0


def num_parts(storage: Storage, folders: Folders) -> int:
    """The number of published parts."""
    return sum(name.startswith("part-") for name in storage.list(folders.output))


def open_job(
    storage: Storage,
    folders: Folders,
    document: Mapping[str, Any],
    files: Sequence[InputFile],
    started: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes job.json where there is none, or where the columns that parts repeat have changed.

    Of two processes that start together, one writes.

    The content of the input is read once for its checksums before job.json is written.

    Args:
        started: what `compare_job` has returned for the same arguments.

    Returns:
        The content of job.json. Parts and segments carry its fingerprint: a later version of this package may compute
        another fingerprint from the same settings.

    Raises:
        ResumeError: as `compare_job`.
    """
    while started is None:
        manifest = list(_with_versions(document["input"], files, document["plan"]["rows"]))
        data = _encoded({**document, "input": manifest})
        if not storage.atomic_write(folders.file("job.json"), data, exclusive=True):
            time.sleep(LATE_SECONDS)  # another process has just written it, and it may not be visible yet
        started = compare_job(storage, folders, document, files)
    if started != read_job(storage, folders.state):
        storage.atomic_write(folders.file("job.json"), _encoded(started))
    _warn(started, document, files)
    return started


def _warn(started: Mapping[str, Any], document: Mapping[str, Any], files: Sequence[InputFile]) -> None:
    """Logs what is no reason to refuse a job that was started before."""
    if weak := sum(file.version.is_weak for file in files):
        logger.warning(
            "an earlier version of this package has started the job: of %d Parquet file(s) it recorded the footer "
            "alone, so a change of a text by another of the same length before this start cannot be noticed",
            weak,
        )
    if others := _other_backends(started.get("backends"), document["backends"]):
        logger.warning(
            "the job was started with other backends, so rows of this run are equal up to rounding only, and not bit "
            "for bit: %s",
            ", ".join(others),
        )


def restore_job(storage: Storage, folders: Folders, document: Mapping[str, Any]) -> None:
    """Writes job.json again where it was removed while the job ran. Without it no later start would know the parts."""
    with suppress(OSError, ResumeError):
        is_gone = read_job(storage, folders.state) is None
        if is_gone and storage.atomic_write(folders.file("job.json"), _encoded(document), exclusive=True):
            logger.warning("%s was removed while the job ran, and has been written again", folders.file("job.json"))


def _encoded(document: Mapping[str, Any]) -> bytes:
    """The bytes of a job.json."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def _with_versions(
    manifest: Sequence[Mapping[str, Any]], files: Sequence[InputFile], num_rows: int
) -> Iterator[dict[str, Any]]:
    """Yields the entries with the version of each file that has one of the job's first `num_rows` rows."""
    first = 0
    for entry, file in zip(manifest, files, strict=True):
        yield {**entry, **(file.version.record() if first < num_rows else {"version": None})}
        first += entry["rows"]


def _input_changes(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], files: Sequence[InputFile]
) -> list[str]:
    """Returns a line for each change of the input. Files are compared in order and by content, not by name."""
    if len(old) != len(new):
        names = {entry["file"] for entry in old} ^ {entry["file"] for entry in new}
        return [f"number of files was {len(old)}, is {len(new)}: {', '.join(sorted(names)) or 'names are the same'}"]
    changes = []
    for before, after, file in zip(old, new, files, strict=True):
        changed = [name for name in ("rows", "bytes") if before[name] != after[name]]
        changes += [f"{after['file']}: {name} was {before[name]}, is {after[name]}" for name in changed]
        if not changed and (found := file.version.differs(before["version"], before.get("stamp"))) is not None:
            changes.append(f"{after['file']}: content was {before['version']}, is {found or 'of an unknown kind'}")
    return changes


def _other_backends(old: Any, new: Mapping[str, str]) -> list[str]:
    """Returns a text for each op that another backend serves now, and for another rounding of float16 states.

    Jobs of earlier versions have not recorded any backends, or none but the rounding.
    """
    if not isinstance(old, Mapping):
        return []
    old = {HALF_STATES: FORMER_ROUNDING, **old}
    return [f"{op} was {old[op]}, is {backend}" for op, backend in new.items() if old.get(op, backend) != backend]


def _refusal(reason: str, changes: Sequence[str], folders: Folders) -> str:
    lines = "".join(f"\n  {change}" for change in changes)
    return (
        f"{reason}:{lines}\nPut this back to finish the old job, choose another output.path, "
        f"or start over: {folders.removal()}"
    )
