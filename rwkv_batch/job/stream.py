"""The missing rows of a job: those that still have to be served, in batches and in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..rows import ErrorRow, GenerateRow, ScoreRow
from .input.rows import RowKey
from .output.commit import JobFiles
from .output.part_check import PartCheck
from .output.writer import Writer
from .plan import Unit
from .prepare import Prepared


def missing_rows(
    prepared: Prepared, files: JobFiles, units: Sequence[Unit], writer: Writer, part_check: PartCheck
) -> Iterator[list[GenerateRow | ScoreRow | ErrorRow]]:
    """Yields all rows of the units that no segment has. Announces each unit to the writer before its first row.

    Another thread than the caller's may run the iterator.

    Args:
        part_check: tests files that it has not tested yet, ahead of their unit.
    """
    for unit in units:
        part_check.check_ahead(unit)
        committed = files.committed_rows(unit)
        writer.begin(unit, len(committed))
        start = unit.start
        for rows in prepared.source.read(unit.start, unit.stop, prepared.columns.read):
            missing = [index for index in range(rows.batch.num_rows) if start + index not in committed]
            keys = [RowKey(unit, start + index) for index in missing]
            start += rows.batch.num_rows
            if len(missing) < rows.batch.num_rows:
                rows = rows.take(missing)
            for part in rows.parts() if keys else ():
                yield prepared.parser.rows(part, keys[: part.batch.num_rows])
                keys = keys[part.batch.num_rows :]
