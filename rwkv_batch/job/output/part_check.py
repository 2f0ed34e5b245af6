"""Test parts: what cannot be written is found before the model is loaded.

A test part is made by the code that makes parts, from the first rows of each input file, and read back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ...errors import ConfigurationError
from ..input.reader import Span
from ..plan import Unit, UnitPlan
from .parts import OutputFormat, PartMaker, RowSource

logger = logging.getLogger(__name__)

FILES = 64
"""Files that are tested before the model is loaded. The others are tested before their unit is served."""
ROWS = 16
"""Rows of a file that are tested."""


class PartCheck:
    """Test parts of one job.

    Args:
        form: schema and footer of parts.
        source: the input, whose columns parts repeat.
        plan: the job's units.
    """

    def __init__(self, form: OutputFormat, source: RowSource, plan: UnitPlan) -> None:
        self._form = form
        self._source = source
        self._num_rows = plan.num_rows
        self._maker = PartMaker(form, source)
        self._seen: set[str] = set()

    def check(self) -> None:
        """Makes test parts without rows, and of the first files.

        Raises:
            ConfigurationError: one of them cannot be written or read back.
        """
        if fault := self._fault([], Unit(0, 0, 0)):
            raise ConfigurationError(f"output.input_columns: {fault}{self._advice()}")
        for span in self._source.spans(0, self._num_rows):
            if len(self._seen) == FILES:
                return
            if fault := self._first_fault(span):
                raise ConfigurationError(f"output.input_columns: {fault}{self._advice()}")

    def check_ahead(self, unit: Unit) -> None:
        """Makes test parts of a unit's files that no earlier test part had. A fault is logged."""
        for span in self._source.spans(unit.start, unit.stop):
            if span.file.name not in self._seen and (fault := self._first_fault(span)):
                logger.warning("%s; its rows become error rows with null there", fault)

    def _first_fault(self, span: Span) -> str | None:
        """Tests the first of these rows."""
        self._seen.add(span.file.name)
        stop = min(span.stop, span.start + ROWS)
        fault = self._fault([span._replace(stop=stop)], Unit(0, span.start, stop))
        return fault and f"{span.file.name}: {fault}"

    def _fault(self, spans: list[Span], unit: Unit) -> str | None:
        """Returns what goes wrong with a part of these rows, and with which column, if it is one column alone."""
        passed = self._form.passed
        fault = self._fault_of(spans, unit, passed)
        if fault is None:
            return None
        for field in passed:
            if alone := self._fault_of(spans, unit, pa.schema([field])):
                return f"the column {field.name!r} ({field.type}) cannot be passed on: {alone}"
        return f"the columns cannot be passed on: {fault}"

    def _fault_of(self, spans: list[Span], unit: Unit, passed: pa.Schema) -> str | None:
        rows = np.repeat(np.arange(unit.start, unit.stop), 2)  # as for two samples
        results = [pa.nulls(len(rows), field.type) for field in self._form.results]
        table = pa.table([pa.array(rows), *results], names=["row", *self._form.results.names])
        problem = self._maker.problem(unit, table, spans, passed)
        return problem or next(self._read_errors(spans, passed.names), None)

    def _read_errors(self, spans: list[Span], names: list[str]) -> Iterator[str]:
        """Yields why rows could not be read, where none of a batch could. Single bad rows are data."""
        for span in spans if names else []:
            for rows in self._source.read(span.start, span.stop, names):
                found = [error.message for error in rows.errors.values() if error.code == "read_error"]
                if found and len(found) == rows.batch.num_rows:
                    yield found[0]

    def _advice(self) -> str:
        return "; repair the file, or name in output.input_columns only the columns that the output needs"
