"""The lengths of finished completions, as they reach the estimate of the time left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from job import fake_llm
from job.conftest import Job
from rwkv_batch.errors import RowError
from rwkv_batch.job.output.length_counts import LengthCounts, completion_lengths
from rwkv_batch.job.report.time_left import TimeLeft
from rwkv_batch.job.workers.messages import Served
from rwkv_batch.job.workers.tally import Tally
from rwkv_batch.rows import ErrorRow, Finished, GenerateRow, RowInFlight
from rwkv_batch.sampling_params import SamplingParams


def row(*lengths: int, scoring: Any = None) -> RowInFlight:
    found = RowInFlight(GenerateRow(0, 0, "a", SamplingParams()), [], scoring=scoring)
    for length in lengths:
        request = fake_llm.Request([], 0)
        found.completions.append(fake_llm.Completion(request, np.zeros(length), None))
    return found


def test_lengths_of_finished_rows() -> None:
    """Of each sample; none of an error row, and none of a row that was scored."""
    rows: list[Finished] = [
        row(3, 5),
        ErrorRow(1, 1, RowError("null_prompt", "it is null")),
        row(0),
        row(9, scoring=object()),
    ]
    assert completion_lengths(rows) == [3, 5, 0]


def test_lengths_that_a_worker_tells() -> None:
    tally = Tally(0)
    tally.add(0, Served([1, 2], 0, 0, [5, 7]))
    tally.add(0, Served([3], 1, 0))
    assert (tally.counts.lengths.count, tally.counts.lengths.total) == (2, 12)


@pytest.mark.parametrize(("column", "limit"), [(False, 8), (True, None)])
def test_a_run_counts_its_lengths_and_knows_their_limit(
    job: Job, monkeypatch: pytest.MonkeyPatch, column: bool, limit: int | None
) -> None:
    """Where rows have limits of their own, the job has none. 30 rows of two samples."""
    seen: list[LengthCounts] = []
    update = TimeLeft.update

    def watched(self: TimeLeft, status: Any, lengths: LengthCounts) -> float | None:
        seen.append(lengths)
        return update(self, status, lengths)

    monkeypatch.setattr(TimeLeft, "update", watched)
    if column:
        job.input(prompt=["a"] * 30, max_tokens=[5] * 30)
    assert job.set(sampling__n=2).run() == 0
    assert seen[-1].limit == limit
    assert (seen[-1].count, seen[-1].total) == (60, sum(one["completion_tokens"] for one in job.rows()))
