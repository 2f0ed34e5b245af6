"""Error rows that are served again: which limits may differ from those of the first serving, and what came of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import __version__
from ..errors import ConfigurationError
from .messages import did_you_mean, listed, shown
from .output.commit import JobFiles, Part
from .output.published import Retry
from .output.storage import Storage
from .plan import Unit
from .prepare import Prepared
from .report.error_codes import ERROR_CODES
from .state import read_job

LIMITS = ("input.max_prompt_tokens",)
"""Settings that are compared when a job goes on, and not when its error rows are served again: no row that is ok
depends on them."""

RetryErrors = bool | Sequence[str]
"""Whether error rows are served again; or the error codes of those that are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retried:
    """What became of the error rows that a run has served again.

    Args:
        rows: the number of these rows.
        errors: those that are errors again.
    """

    rows: int
    errors: int

    def __str__(self) -> str:
        return f"{self.rows:,} error rows, {self.rows - self.errors:,} of them are ok now, {self.errors:,} still errors"


def with_retry(prepared: Prepared, storage: Storage, retry_errors: RetryErrors) -> Prepared:
    """Returns the job as one that serves error rows again, if that is what the run is for.

    Args:
        retry_errors: False returns the job as it is.

    Raises:
        ConfigurationError: the job has not been started, or there is no such error code.
    """
    if retry_errors is False:
        return prepared
    started = read_job(storage, prepared.folders.state)
    if started is None:
        raise ConfigurationError(
            f"--retry-errors: {prepared.folders.output} is no job's output yet; run the job without it first"
        )
    return as_retry(prepared, started, Retry(_codes(retry_errors), _recorded(prepared)))


def as_retry(prepared: Prepared, started: Mapping[str, Any], retry: Retry | None) -> Prepared:
    """Returns the job as one that serves these error rows again, and does not stop at one.

    Args:
        started: the content of job.json. Its limits stand in the job's document in place of the present ones.
        retry: None returns the job as it is.
    """
    if retry is None:
        return prepared
    settings = prepared.document["settings"]
    limits = {name: started["settings"].get(name) for name in LIMITS if name in settings}
    document = {**prepared.document, "settings": {**settings, **limits}}
    run = prepared.job.run.model_copy(update={"on_row_error": "continue"})
    job = prepared.job.model_copy(update={"run": run})
    return replace(prepared, job=job, document=document, retry=retry)


def _codes(retry_errors: RetryErrors) -> frozenset[str] | None:
    """The error codes that are named; None for all."""
    if retry_errors is True or not retry_errors:
        return None
    if isinstance(retry_errors, str):
        raise ConfigurationError(f"retry_errors: got {shown(retry_errors)}, expected a list of error codes, or True")
    for code in retry_errors:
        if code not in ERROR_CODES:
            hint = did_you_mean(code, ERROR_CODES) or f"; they are {listed(ERROR_CODES)}"
            raise ConfigurationError(f"--retry-errors: got {shown(code)}, expected an error code{hint}")
    return frozenset(retry_errors)


def _recorded(prepared: Prepared) -> dict[str, Any]:
    """The settings that the footers of the segments record: all limits and the section `engine`."""
    job = prepared.job
    engine = {f"engine.{name}": value for name, value in job.engine.model_dump().items()}
    return {"version": __version__, "input.max_prompt_tokens": job.input.max_prompt_tokens, **engine}


def units_to_retry(files: JobFiles, retry: Retry, units: Iterable[Unit]) -> dict[Unit, Retried]:
    """Finds the units whose published part has error rows that are served again. Reads these parts.

    Returns:
        Unit → the number of its rows that are served again, and that of all of its error rows.
    """
    found: dict[Unit, Retried] = {}
    seen: Counter[str] = Counter()
    for unit in units:
        part = files.part(unit)
        if part is None or not part.errors:
            continue
        errors = files.error_rows(unit)
        seen.update(errors["error_code"].to_pylist())
        if rows := retry.rows(errors):
            found[unit] = Retried(len(rows), part.errors)
    for code in sorted((retry.codes or frozenset()) - seen.keys()):
        there = ", ".join(f"{name} {count:,}" for name, count in sorted(seen.items())) or "none at all"
        logger.warning("no error row has the code %r; there are %s", code, there)
    return found


def describe_retry(prepared: Prepared, storage: Storage, units: Iterable[Unit]) -> Iterator[str]:
    """Yields a line for a terminal where a run would serve error rows again: how many, and in how many parts.

    Args:
        units: of the shard.
    """
    if prepared.retry is not None:
        found = units_to_retry(prepared.files(storage), prepared.retry, units)
        yield f"retry     {sum(unit.rows for unit in found.values()):,} error rows in {len(found):,} parts"


def retried(before: Mapping[Unit, Retried], parts: Sequence[Part | None]) -> Retried:
    """Counts the rows of all units that were served again, and those that are errors again.

    Args:
        before: what `units_to_retry` has returned.
        parts: the parts of the job's units as they are now.
    """
    rows = sum(unit.rows for unit in before.values())
    now = [part.errors for unit in before if (part := parts[unit.index]) is not None]
    return Retried(rows, rows - (sum(unit.errors for unit in before.values()) - sum(now)))
