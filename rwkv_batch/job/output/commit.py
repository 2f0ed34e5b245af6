"""The commit protocol: segments hold finished rows, a complete unit's segments become its part.

A row is visible only through its part. A part has a fixed name and appears whole. Work that is done twice, by a restart
or by two processes at once, therefore leaves duplicates among segments only, and `publish` drops them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..plan import Unit, UnitPlan
from .results import output_schema
from .storage import Storage

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""Exceptions that reading a damaged Parquet file raises."""

ROW_GROUP_ROWS = 4096
ROW_GROUP_BYTES = 64 << 20


@dataclass(frozen=True)
class Part:
    """A published part.

    Args:
        name: of the file.
        rows: its input rows.
        errors: those of its input rows that are errors.
        bytes: the size of the file.
    """

    name: str
    rows: int
    errors: int
    bytes: int


@dataclass(frozen=True)
class OutputFormat:
    """The schema and the footer of parts and segments.

    Args:
        results: columns that the job adds.
        passed: columns of the input that parts repeat, before the results.
        names: the name in parts of each column in `results`.
        footer: key-values of every file; "fingerprint" distinguishes this job's files from another job's.
    """

    results: pa.Schema
    passed: pa.Schema
    names: Mapping[str, str]
    footer: Mapping[str, str]

    def schema(self, unit: Unit, extra: Mapping[str, int] | None = None) -> pa.Schema:
        """Returns the schema of a unit's part, with its footer as metadata."""
        values = {**self.footer, "unit": unit.index, **(extra or {})}
        metadata = {f"rwkv_batch.{key}": str(value) for key, value in values.items()}
        return output_schema(self.passed, self.results, self.names).with_metadata(metadata)


class JobFiles:
    """The output folder and the state folder of one job.

    Args:
        storage: reads, and writes atomically.
        output_folder: holds parts and nothing else.
        state_folder: holds job.json, segments and reports.
        plan: the job's units.
        form: schema and footer of the files.

    Attributes:
        damaged: paths of segments and parts that could not be read; their rows are served again.
    """

    def __init__(
        self, storage: Storage, output_folder: str, state_folder: str, plan: UnitPlan, form: OutputFormat
    ) -> None:
        self._storage = storage
        self._output_folder = output_folder
        self._state_folder = state_folder
        self._plan = plan
        self._form = form
        self._segment_schema = form.results.insert(0, pa.field("row", pa.int64()))
        self._next_segment = 0
        self._run = os.urandom(4).hex()
        self.damaged: set[str] = set()

    def part(self, unit: Unit) -> Part | None:
        """Returns the unit's part, if it is there, can be read, and is this job's; else None."""
        path = self._part_path(unit)
        try:
            with self._storage.open(path) as file:
                values = _footer(pq.ParquetFile(file))
                size = file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            self._report_damage(path, error)
            return None
        if values.get("fingerprint") != self._form.footer["fingerprint"] or values.get("unit") != str(unit.index):
            return None
        return Part(os.path.basename(path), int(values["rows"]), int(values["errors"]), size)

    def commit(self, unit: Unit, batches: Sequence[pa.RecordBatch]) -> None:
        """Writes finished rows to a new segment. They are durable when this returns.

        Args:
            batches: the results, after a column "row".
        """
        schema = self._segment_schema.with_metadata(self._form.schema(unit).metadata)
        table = pa.Table.from_batches(batches, self._segment_schema).cast(schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        path = os.path.join(self._unit_folder(unit), f"seg-{self._next_segment:06d}-{self._run}.seg")
        self._next_segment += 1
        self._storage.atomic_write(path, sink.getvalue())

    def committed_rows(self, unit: Unit) -> set[int]:
        """Returns the numbers of the rows that the unit's segments have."""
        return {row for segment in self._segments(unit, ["row"]) for row in segment["row"].to_pylist()}

    def publish(self, unit: Unit, source: Iterable[pa.RecordBatch]) -> Part:
        """Writes the part of a unit whose rows are all committed, then removes its segments.

        Args:
            source: the unit's rows with the columns that parts repeat.

        Raises:
            RuntimeError: committed rows are missing, or the input has fewer rows than when the job started.
        """
        part = self.part(unit)
        if part is None:
            results = self._results(unit)
            missing = unit.num_rows - pc.count_distinct(results["row"]).as_py()
            if not missing:
                part = self._write_part(unit, results, source)
            else:  # another process may have published the unit meanwhile, and dropped its segments
                part = self.part(unit)
        if part is None:
            raise RuntimeError(f"{missing} committed rows of {self._unit_folder(unit)} are gone; start the job again")
        self.drop_segments(unit)
        return part

    def drop_segments(self, unit: Unit) -> None:
        """Removes the unit's segments."""
        for path in self._segment_paths(unit):
            self._storage.remove(path)

    def _results(self, unit: Unit) -> pa.Table:
        """Returns the committed results in row and sample order. Of two segments with a row, the first one counts."""
        segments = list(self._segments(unit))
        if not segments:
            return self._segment_schema.empty_table()
        table = pa.concat_tables(segments)
        rows = np.asarray(table["row"])
        segment_of = np.repeat(np.arange(len(segments)), [len(segment) for segment in segments])
        _, first, row_of = np.unique(rows, return_index=True, return_inverse=True)
        kept = np.flatnonzero(segment_of == segment_of[first][row_of])
        return table.take(pa.array(kept[np.argsort(rows[kept], kind="stable")]))

    def _write_part(self, unit: Unit, results: pa.Table, source: Iterable[pa.RecordBatch]) -> Part:
        errors = pc.sum(pc.equal(results["status"], "error")).as_py() or 0
        schema = self._form.schema(unit, {"rows": unit.num_rows, "errors": errors})
        sink = pa.BufferOutputStream()
        num_records = 0
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for group in _row_groups(self._joined(unit, results, source)):
                num_records += group.num_rows
                writer.write_table(group.cast(schema), row_group_size=group.num_rows)
        if num_records != results.num_rows:
            raise RuntimeError(f"unit {unit.index}: the input has lost rows since the job started")
        data = sink.getvalue()
        path = self._part_path(unit)
        self._storage.atomic_write(path, data)
        return Part(os.path.basename(path), unit.num_rows, errors, data.size)

    def _joined(self, unit: Unit, results: pa.Table, source: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Yields the results with their rows' input columns before them, a batch at a time."""
        rows = np.asarray(results["row"])
        results = results.drop_columns("row")
        results = results.rename_columns([self._form.names[name] for name in results.column_names])
        names = self._form.passed.names
        if not names:
            yield results
            return
        first_row = unit.start
        for batch in source:
            low, high = np.searchsorted(rows, [first_row, first_row + batch.num_rows])
            passed = pa.Table.from_batches([batch.select(names)])
            if high - low != batch.num_rows:  # several samples of a row repeat its input
                passed = passed.take(pa.array(rows[low:high] - first_row))
            result = results.slice(low, high - low)
            yield pa.table([*passed.columns, *result.columns], names=[*names, *result.column_names])
            first_row += batch.num_rows

    def _segments(self, unit: Unit, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yields the unit's segments that can be read, in the order of their names."""
        for path in self._segment_paths(unit):
            try:
                with self._storage.open(path) as file:
                    parquet = pq.ParquetFile(file, page_checksum_verification=True)
                    if _footer(parquet).get("fingerprint") != self._form.footer["fingerprint"]:
                        continue
                    table = parquet.read(columns).select(columns or self._segment_schema.names)
            except FileNotFoundError:  # another process has just published the unit
                continue
            except UNREADABLE as error:
                self._report_damage(path, error)
                continue
            yield table.replace_schema_metadata(None)

    def _segment_paths(self, unit: Unit) -> list[str]:
        folder = self._unit_folder(unit)
        return [os.path.join(folder, name) for name in self._storage.list(folder) if name.endswith(".seg")]

    def _unit_folder(self, unit: Unit) -> str:
        return os.path.join(self._state_folder, f"unit-{unit.index:05d}")

    def _part_path(self, unit: Unit) -> str:
        return os.path.join(self._output_folder, part_name(unit.index, self._plan.num_units))

    def _report_damage(self, path: str, error: Exception) -> None:
        if path not in self.damaged:
            self.damaged.add(path)
            logger.warning("%s cannot be read and is ignored; its rows are made again (%s)", path, error)


def part_name(index: int, count: int) -> str:
    """Returns the file name of the part of unit `index` of `count`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def _footer(parquet: pq.ParquetFile) -> dict[str, str]:
    """Returns this project's key-values in a Parquet file's footer, without their prefix."""
    metadata = parquet.metadata.metadata or {}
    pairs = ((key.decode(), value.decode()) for key, value in metadata.items())
    return {key.removeprefix("rwkv_batch."): value for key, value in pairs if key.startswith("rwkv_batch.")}


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Joins small tables and cuts large ones, so that each makes a row group of a useful size."""
    pending: list[pa.Table] = []
    for table in tables:
        for start in range(0, table.num_rows, ROW_GROUP_ROWS):
            pending.append(table.slice(start, ROW_GROUP_ROWS))
            if sum(map(len, pending)) >= ROW_GROUP_ROWS or sum(piece.nbytes for piece in pending) >= ROW_GROUP_BYTES:
                yield pa.concat_tables(pending)
                pending = []
    if pending:
        yield pa.concat_tables(pending)
