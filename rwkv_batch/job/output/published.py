"""The results inside published parts, and which of their error rows are served again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..plan import Unit
from .parts import OutputFormat


@dataclass(frozen=True)
class Retry:
    """The error rows that a run serves again.

    Args:
        codes: the error codes of these rows; None for every error row.
        settings: what the run serves them with and job.json does not record. Segments, and the parts that are made of
            them, have it in their footers.
    """

    codes: frozenset[str] | None
    settings: Mapping[str, Any]

    def rows(self, errors: pa.Table) -> set[int]:
        """Returns the numbers of the rows that are served again.

        Args:
            errors: the columns "row" and "error_code" of error rows.
        """
        rows, codes = errors["row"].to_pylist(), errors["error_code"].to_pylist()
        return {row for row, code in zip(rows, codes, strict=True) if self.codes is None or code in self.codes}


def read_results(file: Any, form: OutputFormat, unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the results in a part as segments hold them: a column "row", then the columns that the job adds.

    Args:
        file: the open part.
        form: of the job.
        unit: the part's.
        columns: the columns that are read, by the job's own names; None for all.

    Raises:
        ValueError: the part has another number of rows than its unit.
    """
    wanted = form.results.names if columns is None else columns
    read = [*dict.fromkeys([*(["sample_index"] if "sample_index" in form.results.names else []), *wanted])]
    names = [form.names.get(name, name) for name in read]
    table = pq.ParquetFile(file).read(columns=names).select(names).rename_columns(read)
    first = np.asarray(table["sample_index"]) == 0 if "sample_index" in read else np.ones(table.num_rows, bool)
    rows = unit.start - 1 + np.cumsum(first)
    if int(first.sum()) != unit.num_rows:
        raise ValueError(f"it has {int(first.sum()):,} rows, expected {unit.num_rows:,}")
    return table.select(wanted).add_column(0, "row", pa.array(rows, pa.int64()))


def read_errors(file: Any, form: OutputFormat, unit: Unit) -> pa.Table:
    """Reads the error rows of a part.

    Returns:
        The columns "row", "status" and "error_code" of its records that are errors.

    Args, Raises: as `read_results`.
    """
    table = read_results(file, form, unit, ["status", "error_code"])
    return table.filter(pc.equal(table["status"], "error"))
