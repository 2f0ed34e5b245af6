"""The finished parts of a job, as commands read them: in input order, a batch of rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigurationError
from ..job.folders import Folders
from ..job.output.commit import UNREADABLE, part_name
from ..job.output.storage import Storage
from ..job.report.events import read_events
from ..job.report.report import find_job
from ..job.state import read_job

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Finished:
    """The published parts of a job.

    Args:
        folders: of the job.
        storage: reads them.
        job: the content of job.json.
        names: the parts that are there, in the order of their rows.
        schema: of the parts, without their footers.
    """

    folders: Folders
    storage: Storage
    job: dict[str, Any]
    names: tuple[str, ...]
    schema: pa.Schema

    @property
    def is_complete(self) -> bool:
        """Whether every part is there."""
        return len(self.names) == self.job["plan"]["units"]

    @property
    def task(self) -> str:
        """The job's task."""
        return str(self.job["settings"]["task"])

    def column(self, own: str) -> str | None:
        """Returns the name in parts of a column that the job adds; None where parts have no such column."""
        name = self.job.get("columns", {}).get(own, own)
        return name if name in self.schema.names else None

    def role(self, role: str) -> str | None:
        """Returns the name of the input column with a role, if parts have it."""
        name = self.job["settings"].get(f"input.columns.{role}")
        return name if name in self.schema.names else None

    def config(self) -> dict[str, Any]:
        """Returns the settings of the latest run, as its log has them; {} where no log can be read."""
        starts = (one for one in read_events(self.storage, self.folders.state) if one["event"] == "start")
        found: dict[str, Any] = max(starts, key=lambda event: event["time"], default={}).get("config", {})
        return found

    def id_column(self) -> str | None:
        """Returns the name of the column with the role id, if parts have it."""
        columns = self.config().get("input", {}).get("columns", {})
        name = columns.get("id", "id")
        return name if name in self.schema.names else None

    def batches(self, columns: Sequence[str] | None = None, *, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yields the records, a bounded number at a time, never of two row groups together.

        Args:
            columns: the columns to read; None reads all.
            rows: the most records of a batch.

        Raises:
            ConfigurationError: a part cannot be read.
        """
        for name in self.names:
            path = os.path.join(self.folders.output, name)
            try:
                with self.storage.open(path) as file:
                    parquet = pq.ParquetFile(file)
                    for group in range(parquet.num_row_groups):
                        for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
                            yield batch.select(columns) if columns is not None else batch
            except UNREADABLE as error:
                raise ConfigurationError(
                    f"{path} cannot be read ({error}); start the job again: it makes damaged parts again"
                ) from error


def open_finished(path: str, *, is_partial: bool = False) -> Finished:
    """Opens the parts of a job, given its output folder or its state folder.

    Args:
        is_partial: take a job of which parts are missing.

    Raises:
        ConfigurationError: there is no such job or no part, or parts are missing.
    """
    folders = find_job(path)
    storage = folders.open_storage()
    job = read_job(storage, folders.state)
    assert job is not None
    count = job["plan"]["units"]
    present = set(storage.list(folders.output))
    names = tuple(name for index in range(count) if (name := part_name(index, count)) in present)
    if not names:
        raise ConfigurationError(f"{folders.output}: got no finished part, expected at least one; run the job first")
    if len(names) < count and not is_partial:
        raise ConfigurationError(
            f"{folders.output}: {count - len(names):,} of {count:,} parts are missing; finish the job with "
            "rwkv-batch run, or take what is there with --partial"
        )
    first = os.path.join(folders.output, names[0])
    try:
        with storage.open(first) as file:
            schema = pq.read_schema(file)
    except UNREADABLE as error:
        raise ConfigurationError(f"{first} cannot be read ({error}); start the job again: it makes it again") from error
    return Finished(folders, storage, job, names, schema.remove_metadata())
