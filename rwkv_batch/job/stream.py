"""The missing rows of a job: those that still have to be served, in batches and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..rows import ErrorRow, GenerateRow, ScoreRow
from .input.rows import RowKey
from .output.commit import JobFiles
from .output.part_check import PartCheck
from .output.writer import Writer
from .plan import Assignment
from .prepare import Prepared

Batch = list[GenerateRow | ScoreRow | ErrorRow]


def missing_rows(
    prepared: Prepared,
    files: JobFiles,
    assignments: Iterable[Assignment],
    writer: Writer,
    part_check: PartCheck,
    on_begin: Callable[[Assignment, int, int], None] = lambda assignment, committed, missing: None,
) -> Iterator[Batch]:
    """Yields the rows of the assignments that no segment has. Announces each unit to the writer before its first row.

    Another thread than the caller's may run the iterator.

    Args:
        part_check: tests files that it has not tested yet, ahead of their unit.
        on_begin: called before the rows of an assignment, with the number of rows of its unit that are committed, and
            the number of its own that are missing.
    """
    for assignment in assignments:
        unit = assignment.unit
        part_check.check_ahead(unit)
        committed = files.committed_rows(unit)
        missing = assignment.missing(committed)
        writer.begin(unit, len(committed))
        on_begin(assignment, len(committed), len(missing))
        if assignment.error is not None:
            yield [ErrorRow(RowKey(unit, row), row, assignment.error) for row in missing]
        elif missing:
            yield from _read(prepared, assignment, missing)


def _read(prepared: Prepared, assignment: Assignment, missing: list[int]) -> Iterator[Batch]:
    """Yields these rows of the unit, as rows to serve or error rows.

    Args:
        missing: numbers of rows, in order.
    """
    wanted = set(missing)
    start = missing[0]
    for rows in prepared.source.read(start, missing[-1] + 1, prepared.columns.read):
        indices = [index for index in range(rows.batch.num_rows) if start + index in wanted]
        keys = [RowKey(assignment.unit, start + index) for index in indices]
        start += rows.batch.num_rows
        if len(indices) < rows.batch.num_rows:
            rows = rows.take(indices)
        for part in rows.parts() if keys else ():
            yield prepared.parser.rows(part, keys[: part.batch.num_rows])
            keys = keys[part.batch.num_rows :]
