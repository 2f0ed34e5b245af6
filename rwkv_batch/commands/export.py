"""The command `export`: the finished parts of a job as one file, in input order."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ..errors import ConfigurationError, one_of
from ..job.output.parts import ROW_GROUP_ROWS
from ..object_stores.urls import is_url
from .finished import Finished, open_finished
from .openai_results import write_openai
from .plain_values import csv_batch, csv_schema, to_json
from .target_file import check_target, target_file

FORMATS = ("parquet", "jsonl", "csv", "openai")


def export(
    out: str,
    target: str,
    *,
    form: str | None = None,
    errors: str | None = None,
    is_partial: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes the finished parts of a job as one file. Memory is bounded by a row group of a part.

    Args:
        out: the job's output folder, or its state folder.
        target: the file.
        form: of `FORMATS`; None takes it from the end of the file's name.
        errors: the file for error rows, with the form openai; None puts ".errors" before the end of `target`.
        is_partial: take a job of which parts are missing.
        overwrite: replace files that exist.

    Returns:
        What was written, in words.

    Raises:
        ConfigurationError: something about the job or the file is not as it must be; nothing has been written.
        OSError: the file cannot be written.
    """
    form = _form(target, form)
    if errors is not None and form != "openai":
        raise ConfigurationError("--errors: got it without --format openai, to which it belongs")
    finished = open_finished(out, is_partial=is_partial)
    targets = [target]
    if form == "openai":
        stem, end = os.path.splitext(target)
        targets.append(f"{stem}.errors{end}" if errors is None else errors)
    for path in targets:
        check_target(path, overwrite=overwrite)
        _check_outside(finished, path)
    with target_file(target, overwrite=overwrite) as file:
        if form == "openai":
            with target_file(targets[1], overwrite=overwrite) as error_file:
                rows, bad = write_openai(finished, file, error_file)
            written = f"{target}: {rows:,} rows; {targets[1]}: {bad:,} error rows"
        else:
            written = f"{target}: {WRITERS[form](finished, file):,} rows"
    missing = finished.job["plan"]["units"] - len(finished.names)
    return written + (f"; {missing:,} parts are missing" if missing else "")


def _form(target: str, form: str | None) -> str:
    """The format of a file. Raises ConfigurationError where it is not known."""
    if form is not None:
        return form
    end = os.path.splitext(target)[1].lower()
    known = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
    if end not in known:
        raise ConfigurationError(f"got {target!r}, expected a name that ends with {one_of([*known])}, or --format")
    return known[end]


def _check_outside(finished: Finished, target: str) -> None:
    """Raises ConfigurationError where a file would be in one of the job's folders."""
    path = os.path.realpath(target)
    for folder in (finished.folders.output, finished.folders.state):
        if not is_url(folder) and path.startswith(os.path.join(os.path.realpath(folder), "")):
            raise ConfigurationError(f"{target} is inside {folder}, a folder of the job; choose another place")


def _write_parquet(finished: Finished, file: BinaryIO) -> int:
    """Writes the rows with the row groups that they have in parts."""
    rows = 0
    with pq.ParquetWriter(file, finished.schema, compression="zstd") as writer:
        for batch in finished.batches(rows=ROW_GROUP_ROWS):
            writer.write_batch(batch.cast(finished.schema), row_group_size=batch.num_rows)
            rows += batch.num_rows
    return rows


def _write_jsonl(finished: Finished, file: BinaryIO) -> int:
    rows = 0
    for batch in finished.batches():
        file.write("".join(f"{to_json(record)}\n" for record in batch.to_pylist()).encode(errors="backslashreplace"))
        rows += batch.num_rows
    return rows


def _write_csv(finished: Finished, file: BinaryIO) -> int:
    rows, schema = 0, csv_schema(finished.schema)
    with pa_csv.CSVWriter(file, schema) as writer:
        for batch in finished.batches():
            writer.write_batch(csv_batch(batch, schema))
            rows += batch.num_rows
    return rows


WRITERS: dict[str, Callable[[Finished, BinaryIO], int]] = {
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
"""Format → what writes the rows and returns their number."""
