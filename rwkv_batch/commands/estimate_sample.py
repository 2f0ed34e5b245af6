"""A sample of a job's rows, tokenized as the job will do it, and totals of all rows that follow from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..engine.admission import planning_window
from ..engine.prefix import Node, Prefix, plan_prefixes
from ..engine.request import Request
from ..job.input.rows import RowKey
from ..job.prepare import Prepared
from ..requests import RequestBuilder
from ..rows import ErrorRow, GenerateRow, RowInFlight, ScoreRow

WINDOWS, WINDOW_ROWS = 16, 128
"""The rows of a sample: so many windows of consecutive rows, one in each stretch of the input, at a random place."""
MOST_REQUESTS = 16_384
"""Requests of a sample: rows with many samples make its windows smaller."""
SEED = 0
T_QUANTILE = 2.228
"""The 97.5 % quantile of Student's distribution with 10 degrees of freedom: two thirds of WINDOWS - 1, which is what
differences of neighbors are worth."""


class Estimated(NamedTuple):
    """A number with its 95 % interval. Both ends are the number itself where it is known exactly."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Estimated:
        """A number that is known."""
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def times(self, factor: float) -> Estimated:
        """The number and its interval, times a factor that is known."""
        return Estimated(self.value * factor, self.low * factor, self.high * factor)

    def described(self) -> dict[str, float]:
        """The number for JSON."""
        return {"estimate": round(self.value), "low": round(self.low), "high": round(self.high)}


@dataclass
class Window:
    """Consecutive rows of the input.

    Attributes:
        start: number of the first row in the whole input.
        given: the rows that can be served, as the job hands them to the engine.
        rows: the same rows with their requests. Constraints are left out: they are compiled when the job runs.
        indices: the place of each of these rows in the window.
        errors: error code → number of rows.
        totals: name → sum over the rows.
    """

    start: int
    num_rows: int
    given: list[GenerateRow | ScoreRow] = field(default_factory=list)
    rows: list[RowInFlight] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sample:
    """Windows of a job's rows.

    Args:
        num_rows: rows of the job.
    """

    num_rows: int
    windows: Sequence[Window]

    @property
    def num_read(self) -> int:
        """Rows of the sample."""
        return sum(window.num_rows for window in self.windows)

    @property
    def is_whole(self) -> bool:
        """The sample is all rows of the job."""
        return self.num_read == self.num_rows

    @property
    def rows(self) -> list[RowInFlight]:
        """The rows of all windows that can be served."""
        return [row for window in self.windows for row in window.rows]

    @property
    def given(self) -> list[GenerateRow | ScoreRow]:
        """The same rows as the job hands them to the engine."""
        return [row for window in self.windows for row in window.given]

    @property
    def requests(self) -> list[Request]:
        """The requests of all rows that can be served."""
        return [request for row in self.rows for request in row.requests]

    @property
    def errors(self) -> Counter[str]:
        """Error code → rows of the sample."""
        return sum((window.errors for window in self.windows), Counter())

    def total(self, name: str) -> Estimated:
        """The sum over all rows of the job, from the sums over the windows.

        Windows have equally many rows. Rows of one window may resemble each other, and rows may change slowly over the
        input: so the interval rests on the differences between neighboring windows.
        """
        sums = np.array([window.totals[name] for window in self.windows], float)
        if self.is_whole:
            return Estimated.exactly(float(sums.sum()))
        value = float(sums.sum()) * self.num_rows / self.num_read
        left_out = 1 - self.num_read / self.num_rows
        deviation = float(np.mean(np.diff(sums) ** 2) / 2 * left_out) ** 0.5
        error = deviation * len(sums) ** 0.5 * self.num_rows / self.num_read
        return Estimated(value, max(value - T_QUANTILE * error, float(sums.sum())), value + T_QUANTILE * error)


def read_sample(prepared: Prepared) -> Sample:
    """Reads and tokenizes a sample of a job's rows; all rows where they are few."""
    builder = RequestBuilder(
        prepared.model.tokenizer,
        prepared.model.file.sizes["V"],
        prepared.job.sampling.seed or 0,
        None,
        prepared.job.input.max_prompt_tokens,
    )
    spans = list(_spans(prepared))
    return Sample(prepared.plan.num_rows, [_window(prepared, builder, start, stop) for start, stop in spans])


def _spans(prepared: Prepared) -> Iterator[tuple[int, int]]:
    """Yields the first row of each window, and the row after its last one."""
    num_rows, samples = prepared.plan.num_rows, max(1, prepared.job.sampling.n)
    size = max(1, min(WINDOW_ROWS, MOST_REQUESTS // (WINDOWS * samples)))
    if num_rows <= WINDOWS * size:
        size = max(1, planning_window(prepared.model.num_slots) // samples)
        yield from ((start, min(start + size, num_rows)) for start in range(0, num_rows, size))
        return
    places = np.random.default_rng(SEED).random(WINDOWS)
    for index, place in enumerate(places):
        first, end = num_rows * index // WINDOWS, num_rows * (index + 1) // WINDOWS
        start = first + int(place * (end - first - size + 1))
        yield start, start + size


def _window(prepared: Prepared, builder: RequestBuilder, start: int, stop: int) -> Window:
    found = Window(start, stop - start)
    row = start
    for rows in prepared.source.read(start, stop, prepared.columns.read):
        unit = prepared.plan.unit(row // prepared.plan.rows_per_part)
        keys = [RowKey(unit, row + index) for index in range(rows.batch.num_rows)]
        given = prepared.parser.rows(rows, keys)
        for own, built in zip(given, builder.build([_unconstrained(one) for one in given]), strict=True):
            if isinstance(built, ErrorRow):
                found.errors[built.error.code] += 1
            elif not isinstance(own, ErrorRow):
                found.given.append(own)
                found.rows.append(built)
                found.indices.append(row - start)
            row += 1
    found.totals.update(_totals(found.rows, prepared.job.engine.prefix_sharing))
    found.totals["error_rows"] = sum(found.errors.values())
    return found


def _unconstrained(row: GenerateRow | ScoreRow | ErrorRow) -> GenerateRow | ScoreRow | ErrorRow:
    """The row without a constraint, which would be compiled."""
    if not isinstance(row, GenerateRow):
        return row
    params = row.params
    if params.json_schema is None and params.regex is None and params.grammar is None:
        return row
    return replace(row, params=replace(params, json_schema=None, regex=None, grammar=None))


def _totals(rows: Sequence[RowInFlight], prefix_sharing: bool) -> dict[str, int]:
    """The sums over rows: tokens as parts will count them, and tokens that the engine reads and computes."""
    requests = [request for row in rows for request in row.requests]
    found = {
        "requests": len(requests),
        "requested_tokens": sum(len(request.prompt_token_ids) for request in requests),
        "computed_tokens": computed_tokens(plan_prefixes(requests, prefix_sharing)),
    }
    if rows and rows[0].scoring is not None:
        scorings = [row.scoring for row in rows if row.scoring is not None]
        return found | {
            "context_tokens": sum(len(scoring.context) for scoring in scorings),
            "scored_tokens": sum(len(ids) for scoring in scorings for ids in scoring.continuations),
        }
    return found | {
        "samples": len(requests),
        "prompt_tokens": sum(len(row.requests[0].prompt_token_ids) for row in rows if row.requests),
        "most_completion_tokens": sum(request.params.token_limit for request in requests),
    }


def computed_tokens(roots: Iterable[Node]) -> int:
    """The prompt tokens that the engine computes: those of a shared prefix count once."""
    total = 0
    pending: list[tuple[Any, int]] = [(root, 0) for root in roots]
    while pending:
        node, shared = pending.pop()
        if isinstance(node, Prefix):
            total += node.length - shared
            pending += [(child, node.length) for child in node.children]
        else:
            total += len(node.prompt_token_ids) - shared
    return total
