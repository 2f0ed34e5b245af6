"""The messages between the coordinator of a job and its workers. Each is pickled by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...engine.stats import EngineStats
from ...errors import RowError
from ..config import JobConfig
from ..input.reader import Input
from ..output.published import Retry


class Start(NamedTuple):
    """The first message to a worker: what it is, and its job.

    Args:
        number: of the worker.
        job: the job, with the sizes of an engine where workers share a machine's memory.
        source: the opened input.
        document: the content of job.json.
        cuda_index: the current CUDA device of the process; None on a CPU.
        num_processes: how many workers divide the cores of their machine.
        model_fingerprint: of the model, where the coordinator has read the same files; None: the worker reads them.
        retry: the error rows that are served again; None where rows without results are served.
    """

    number: int
    job: JobConfig
    source: Input
    document: dict[str, Any]
    cuda_index: int | None
    num_processes: int
    model_fingerprint: str | None
    retry: Retry | None = None


class Close(NamedTuple):
    """There are no further units: end."""


class Stop(NamedTuple):
    """End at the next step, and commit finished rows."""


class Placed(NamedTuple):
    """The worker's process runs, on this machine and under this number."""

    host: str
    pid: int


class Ready(NamedTuple):
    """The model is loaded."""


class Ask(NamedTuple):
    """The worker has read the rows of its assignments, and can take another."""


class Begun(NamedTuple):
    """The worker begins an assignment of this unit, of which so many rows are committed."""

    unit: int
    committed: int


class Taken(NamedTuple):
    """The worker has read these rows, and serves them from now on."""

    rows: list[int]


class Served(NamedTuple):
    """These rows are finished, and not committed yet.

    Args:
        errors: how many of them are errors.
        scored_tokens: tokens of their continuations.
        lengths: tokens of each of their completions.
    """

    rows: list[int]
    errors: int
    scored_tokens: int
    lengths: list[int] = []  # noqa: RUF012 - nobody changes it


class Committed(NamedTuple):
    """So many finished rows of this unit have been committed."""

    unit: int
    rows: int


class Published(NamedTuple):
    """All rows of this unit are committed, and its part is published. An assignment of the whole unit is done."""

    unit: int


class Done(NamedTuple):
    """An assignment of single rows of this unit is done: they are committed. Where that completes the unit, its
    `Published` comes too, earlier or later."""

    unit: int


class BadRow(NamedTuple):
    """Under run.on_row_error: stop, the worker has ended at this row."""

    row: int
    error: RowError


class Event(NamedTuple):
    """An event for the log of the job."""

    name: str
    fields: dict[str, Any]


class Status(NamedTuple):
    """The counters of the worker, which sends them every second.

    Args:
        stats: of the engine; None while the model is loaded.
        disk_seconds: how long the engine has waited for the disk.
    """

    stats: EngineStats | None
    disk_seconds: float = 0.0


class Failed(NamedTuple):
    """The job cannot be served, by this worker or by another one."""

    error: Exception


class Crashed(NamedTuple):
    """The engine has failed, and the process ends: the error in words."""

    reason: str


class Left(NamedTuple):
    """What was finished is committed, and the process ends."""


class Ended(NamedTuple):
    """Not sent: the process has ended.

    Args:
        how: in words.
        is_machine_lost: the process ended because its machine did.
    """

    how: str
    is_machine_lost: bool = False


Message = (
    Placed
    | Ready
    | Ask
    | Begun
    | Taken
    | Served
    | Committed
    | Published
    | Done
    | BadRow
    | Event
    | Status
    | Failed
    | Crashed
    | Left
    | Ended
)
"""What the coordinator hears of a worker."""
