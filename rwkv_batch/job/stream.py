"""The missing rows of a job: those that still have to be served, in batches and in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ..rows import ErrorRow, GenerateRow, ScoreRow
from .input.rows import RowKey
from .output.commit import JobFiles
from .output.rehearsal import Rehearsal
from .output.writer import Writer
from .plan import Unit
from .prepare import Prepared


def missing_rows(
    prepared: Prepared, files: JobFiles, units: Sequence[Unit], writer: Writer, rehearsal: Rehearsal
) -> Iterator[list[GenerateRow | ScoreRow | ErrorRow]]:
    """Yields all rows of the units that no segment has. Announces each unit to the writer before its first row.

    Another thread than the caller's may run the iterator.

    Args:
        rehearsal: tests files that it has not tested yet, ahead of their unit.
    """
    for unit in units:
        rehearsal.check_ahead(unit)
        committed = files.committed_rows(unit)
        writer.begin(unit, len(committed))
        start = unit.start
        for batch in prepared.source.read(unit.start, unit.stop, prepared.columns.read):
            rows = range(start, start + batch.num_rows)
            start = rows.stop
            missing = [row for row in rows if row not in committed]
            if len(missing) < len(rows):
                batch = batch.take(pa.array([row - rows.start for row in missing], pa.int64()))
            if missing:
                yield prepared.parser.rows(batch, [RowKey(unit, row) for row in missing])
