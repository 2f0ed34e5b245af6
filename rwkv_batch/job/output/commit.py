"""The commit protocol: segments hold finished rows, a complete unit's segments become its part.

A row is visible only through its part. A part has a fixed name and appears whole. Work that is done twice, by a restart
or by two processes at once, therefore leaves duplicates among segments only, and `publish` drops them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from ..plan import Unit, UnitPlan
from .parts import OutputFormat, PartMaker, RowSource, footer
from .published import Retry, read_errors, read_results
from .records import PartRecords
from .scratch_storage import UNIT
from .storage import Storage

logger = logging.getLogger(__name__)

READERS = 16
"""Parts that are read at the same time: a request to an object store takes a tenth of a second."""
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError)
"""Exceptions that reading a damaged Parquet file raises."""


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


class _Segment(NamedTuple):
    """The rows of a segment, and the settings with which it was served again: JSON, or "" for a first serving."""

    rows: pa.Table
    retry: str


class JobFiles:
    """The output folder and the state folder of one job.

    Args:
        storage: reads, and writes atomically.
        output_folder: holds parts and nothing else.
        state_folder: holds job.json, segments and reports.
        plan: the job's units.
        form: schema and footer of the files.
        retry: the error rows of published parts that this run serves again, if it is such a run.

    Attributes:
        damaged: paths of segments and parts that were set aside as damaged; their rows are served again.
    """

    def __init__(
        self,
        storage: Storage,
        output_folder: str,
        state_folder: str,
        plan: UnitPlan,
        form: OutputFormat,
        retry: Retry | None = None,
    ) -> None:
        self._storage = storage
        self._output_folder = output_folder
        self._state_folder = state_folder
        self._plan = plan
        self._form = form
        self._retry = retry
        self._segment_schema = form.results.insert(0, pa.field("row", pa.int64()))
        self._roomy_schema = pa.schema([field.with_type(_roomy_type(field.type)) for field in self._segment_schema])
        self._next_segment = 0
        self._run = os.urandom(4).hex()
        self._records = PartRecords(storage, os.path.join(state_folder, "parts"))
        self.damaged: list[str] = []

    def part(self, unit: Unit, *, thorough: bool = False) -> Part | None:
        """Returns the unit's part, if it is there and is this job's; else None. A damaged part is set aside.

        Args:
            thorough: read the whole part and compare its checksum, and not its size alone.
        """
        path = self._part_path(unit)
        try:
            with self._storage.open(path) as file:
                size = file.seek(0, os.SEEK_END)
                fault = self._records.fault(path, size, file if thorough else None)
                values, names = _footer_of(file) if fault is None else ({}, [])
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            _raise_unless_damaged(error)
            fault = str(error)
        if fault is not None:
            self._set_aside(path, fault)
            return None
        if values.get("fingerprint") != self._form.footer["fingerprint"] or values.get("unit") != str(unit.index):
            return None
        if names != self._form.schema(unit).names:  # of a run with another output.input_columns
            return None
        return Part(os.path.basename(path), int(values["rows"]), int(values["errors"]), size)

    def parts(self, units: Sequence[Unit], *, thorough: bool = False) -> list[Part | None]:
        """Returns the parts of these units as `part` does. Lists the folder once, and reads several parts at a time."""
        present = set(self._storage.list(self._output_folder))

        def find(unit: Unit) -> Part | None:
            is_there = os.path.basename(self._part_path(unit)) in present
            return self.part(unit, thorough=thorough) if is_there else None

        with ThreadPoolExecutor(READERS, "rwkv_batch-parts") as executor:
            return list(executor.map(find, units))

    def with_segments(self, units: Sequence[Unit]) -> list[Unit]:
        """Returns those units that have segments."""
        with ThreadPoolExecutor(READERS, "rwkv_batch-parts") as executor:
            paths = executor.map(self._segment_paths, units)
            return [unit for unit, found in zip(units, paths, strict=True) if found]

    def commit(self, unit: Unit, batches: Sequence[pa.RecordBatch]) -> None:
        """Writes finished rows to a new segment. They are durable when this returns.

        Args:
            batches: the results, after a column "row".
        """
        retry = {} if self._retry is None else {b"rwkv_batch.retry": _json(self._retry.settings).encode()}
        schema = self._segment_schema.with_metadata({**(self._form.schema(unit).metadata or {}), **retry})
        table = pa.Table.from_batches(batches, self._segment_schema).cast(schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        path = os.path.join(self._unit_folder(unit), f"seg-{self._next_segment:06d}-{self._run}.seg")
        self._next_segment += 1
        self._storage.atomic_write(path, sink.getvalue())

    def committed_rows(self, unit: Unit) -> set[int]:
        """Returns the numbers of the rows that need not be served. Reads the unit's segments whole.

        They are the rows that its segments have; in a run that serves error rows again, also all rows of its part that
        are not served again.
        """
        rows = {row for segment in self._segments(unit) for row in segment.rows["row"].to_pylist()}
        if self._retry is None:
            return rows
        return rows | set(range(unit.start, unit.stop)) - self._retry.rows(self.error_rows(unit))

    def error_rows(self, unit: Unit) -> pa.Table:
        """Returns the columns "row", "status" and "error_code" of the error rows in the unit's part."""
        with self._storage.open(self._part_path(unit)) as file:
            return read_errors(file, self._form, unit)

    def publish(self, unit: Unit, source: RowSource) -> Part:
        """Writes the part of a unit whose rows are all committed, then removes its segments.

        Where the unit has a part, what its segments have of the part's error rows replaces these.

        Args:
            source: the input, whose columns parts repeat.

        Raises:
            RuntimeError: committed rows are missing, or `PartMaker` cannot make the part.
        """
        part = self.part(unit)
        if part is None:
            segments = list(self._segments(unit))
            results = self._results(segments)
            missing = unit.num_rows - pc.count_distinct(results["row"]).as_py()
            if not missing:
                part = self._write_part(unit, results, source)
            else:  # another process may have published the unit meanwhile, and dropped its segments
                part = self.part(unit)
        else:
            part = self._mended(unit, part, source)
        if part is None:
            raise RuntimeError(f"{missing} committed rows of {self._unit_folder(unit)} are gone; start the job again")
        self.drop_segments(unit)
        return part

    def settle(self, unit: Unit, source: RowSource) -> None:
        """Puts what a killed run has left in segments into the unit's part, and removes the segments.

        Args:
            source: the input, whose columns parts repeat.
        """
        if self._segment_paths(unit):
            self.publish(unit, source)

    def drop_segments(self, unit: Unit) -> None:
        """Removes the unit's segments."""
        for path in self._segment_paths(unit):
            self._storage.remove(path)

    def _results(self, segments: Sequence[_Segment]) -> pa.Table:
        """Returns the committed results in row and sample order.

        Of two segments with a row, the first one counts; but a result replaces an error.
        """
        if not segments:
            return self._roomy_schema.empty_table()
        table = pa.concat_tables([segment.rows for segment in segments])
        is_error = np.asarray(pc.equal(table["status"], "error"))
        order = np.argsort(is_error, kind="stable")  # so that the first one of a row is a result, if there is one
        rows = np.asarray(table["row"])[order]
        segment_of = np.repeat(np.arange(len(segments)), [len(segment.rows) for segment in segments])[order]
        _, first, row_of = np.unique(rows, return_index=True, return_inverse=True)
        kept = np.flatnonzero(segment_of == segment_of[first][row_of])
        return table.take(pa.array(order[kept][np.argsort(rows[kept], kind="stable")]))

    def _mended(self, unit: Unit, part: Part, source: RowSource) -> Part:
        """Returns the unit's part, which is written again where segments have something else of its error rows.

        The results of the part come first, its errors last: no result changes, and of two errors the new one counts.
        """
        segments = list(self._segments(unit))
        if not segments:
            return part
        with self._storage.open(self._part_path(unit)) as file:
            found = read_results(file, self._form, unit).cast(self._roomy_schema)
            known = json.loads(_footer_of(file)[0].get("retries", "[]"))
        is_error = pc.equal(found["status"], "error")
        results, errors = found.filter(pc.invert(is_error)), found.filter(is_error)
        mended = self._results([_Segment(results, ""), *segments, _Segment(errors, "")])
        if mended.equals(found):
            return part
        new = dict.fromkeys(segment.retry for segment in segments if segment.retry)
        retries = [*known, *(settings for settings in map(json.loads, new) if settings not in known)]
        return self._write_part(unit, mended, source, {"retries": _json(retries)} if retries else {})

    def _write_part(
        self, unit: Unit, results: pa.Table, source: RowSource, values: Mapping[str, str] | None = None
    ) -> Part:
        """Writes a part. `values` are more key-values of its footer."""
        form = replace(self._form, footer={**self._form.footer, **(values or {})})
        made = PartMaker(form, source).make(unit, results)
        path = self._part_path(unit)
        self._records.add(path, made.data)
        self._storage.atomic_write(path, made.data)
        return Part(os.path.basename(path), unit.num_rows, made.errors, made.data.size)

    def _segments(self, unit: Unit) -> Iterator[_Segment]:
        """Yields the unit's segments in the order of their names. A damaged one is set aside."""
        for path in self._segment_paths(unit):
            try:
                with self._storage.open(path) as file:
                    parquet = pq.ParquetFile(file, page_checksum_verification=True)
                    values = footer(parquet)
                    if values.get("fingerprint") != self._form.footer["fingerprint"]:
                        continue
                    table = parquet.read().select(self._segment_schema.names).cast(self._roomy_schema)
            except FileNotFoundError:  # another process has just published the unit
                continue
            except UNREADABLE as error:
                _raise_unless_damaged(error)
                self._set_aside(path, str(error))
                continue
            yield _Segment(table, values.get("retry", ""))

    def _segment_paths(self, unit: Unit) -> list[str]:
        folder = self._unit_folder(unit)
        return [os.path.join(folder, name) for name in self._storage.list(folder) if name.endswith(".seg")]

    def _unit_folder(self, unit: Unit) -> str:
        return os.path.join(self._state_folder, f"{UNIT}{unit.index:05d}")

    def _part_path(self, unit: Unit) -> str:
        return os.path.join(self._output_folder, part_name(unit.index, self._plan.num_units))

    def _set_aside(self, path: str, fault: str) -> None:
        """Moves a damaged segment or part into the state folder, under a name that nothing reads."""
        target = os.path.join(self._state_folder, "damaged", f"{os.path.basename(path)}.{os.urandom(4).hex()}")
        with suppress(FileNotFoundError):  # another process has just done so
            self._storage.move(path, target)
            self.damaged.append(path)
            logger.warning("%s is damaged (%s); it is now %s, and its rows are made again", path, fault, target)


def _footer_of(file: Any) -> tuple[dict[str, str], list[str]]:
    """Returns this project's key-values in the footer of an open part, and the names of its columns."""
    parquet = pq.ParquetFile(file)
    return footer(parquet), parquet.schema_arrow.names


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _raise_unless_damaged(error: Exception) -> None:
    """Raises an error of the system, such as a missing permission, which says nothing about a file's content."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        raise error


def _roomy_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a result column in memory: more than 2 GiB of texts or of tokens fit into it."""
    if pt.is_string(kind):
        return pa.large_string()
    return pa.large_list(_roomy_type(kind.value_type)) if pt.is_list(kind) else kind


def part_name(index: int, count: int) -> str:
    """Returns the file name of the part of unit `index` of `count`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"
