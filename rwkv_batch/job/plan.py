"""The plan of a job: which rows become which part, and which process makes it. It depends on the row count alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConfigurationError, RowError

PARTS = 256
FEWEST_ROWS, MOST_ROWS = 200, 20_000
"""Rows of a part where the job file does not say how many: those of about PARTS parts, within these limits."""


@dataclass(frozen=True)
class Unit:
    """The rows that become one part: those from `start` to before `stop`, numbered over the whole input."""

    index: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> range:
        """The numbers of its rows."""
        return range(self.start, self.stop)


class Assignment(NamedTuple):
    """Rows of one unit that a process is to serve. Rows that are committed already are left out.

    Args:
        rows: their numbers in the whole input; None for all rows of the unit.
        error: the rows are not served, and become error rows with this error.
    """

    unit: Unit
    rows: frozenset[int] | None = None
    error: RowError | None = None

    def missing(self, committed: set[int]) -> list[int]:
        """The numbers of the rows that are not committed, in order."""
        rows = self.unit.rows if self.rows is None else sorted(self.rows)
        return [row for row in rows if row not in committed]


def rows_per_part(num_rows: int) -> int:
    """The rows of a part of a job with so many rows, where the job file does not say how many."""
    return min(max(-(-num_rows // PARTS), FEWEST_ROWS), MOST_ROWS)


@dataclass(frozen=True)
class UnitPlan:
    """Consecutive units of `rows_per_part` rows; the last one may be smaller, and is empty where the input is."""

    num_rows: int
    rows_per_part: int

    @property
    def num_units(self) -> int:
        return max(1, -(-self.num_rows // self.rows_per_part))

    def unit(self, index: int) -> Unit:
        start = index * self.rows_per_part
        return Unit(index, start, min(start + self.rows_per_part, self.num_rows))


@dataclass(frozen=True)
class Shard:
    """The units that a process makes: `index, index + count, …`. The default is all units."""

    index: int = 0
    count: int = 1

    def units(self, plan: UnitPlan) -> Iterator[Unit]:
        return (plan.unit(index) for index in range(self.index, plan.num_units, self.count))

    def overlaps(self, other: Shard) -> bool:
        """Whether a unit may belong to both. In a small plan none may."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0

    def file_name(self, stem: str, extension: str) -> str:
        """Returns a file name that no other shard uses: stem.extension, or stem-3-of-8.extension."""
        return f"{stem}.{extension}" if self.count == 1 else f"{stem}-{self.index}-of-{self.count}.{extension}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str | None, environment: Mapping[str, str]) -> Shard:
    """Reads the value of `--shard`.

    Args:
        text: None for the whole job; "i/n", counted from 0; "auto": index and count from a Slurm array's or torchrun's
            variables; "auto/n": the index alone from them, or from a Kubernetes indexed job's.
        environment: the process's variables, read for "auto" only.

    Raises:
        ConfigurationError: the text is no shard, or the variables do not name one.
    """
    if text is None:
        return Shard()
    match = re.fullmatch(r"(auto|\d+)(?:/(\d+))?", text)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise ConfigurationError(f"--shard: got {text!r}, expected i/n with i from 0, auto, or auto/n")
    index, count = (int(match[1]), None) if match[1] != "auto" else _from_environment(environment)
    if match[2] is not None:
        count = int(match[2])
    if count is None:
        raise ConfigurationError(
            "--shard auto: JOB_COMPLETION_INDEX gives no count, expected auto/n, for example auto/8"
        )
    if not 0 <= index < count:
        raise ConfigurationError(f"--shard: got shard {index} of {count}, expected 0 to {count - 1}")
    return Shard(index, count)


def _from_environment(environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Returns index and count of this process in its scheduler's group; a count of None is not known."""
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            return _slurm_array(environment)
        if "RANK" in environment and "WORLD_SIZE" in environment:
            return int(environment["RANK"]), int(environment["WORLD_SIZE"])
        if "JOB_COMPLETION_INDEX" in environment:
            return int(environment["JOB_COMPLETION_INDEX"]), None
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"--shard auto: cannot read the scheduler's variables: {error!r}; use i/n") from error
    raise ConfigurationError(
        "--shard auto: found none of SLURM_ARRAY_TASK_ID, RANK with WORLD_SIZE, JOB_COMPLETION_INDEX; use i/n"
    )


def _slurm_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns index and count of a task in a Slurm array. An array with holes is refused: nobody makes their units."""
    task, first, last, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
    if last - first != (count - 1) * step:
        raise ConfigurationError(f"--shard auto: the Slurm array {first}-{last} has holes ({count} tasks); use i/n")
    return (task - first) // step, count
