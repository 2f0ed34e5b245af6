"""Units cover every row once, whatever the sizes and shards; schedulers' variables are read as they are documented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.plan import Shard, UnitPlan, parse_shard


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 7))
def test_shards_cover_every_row_once(num_rows: int, rows_per_part: int, shards: int) -> None:
    plan = UnitPlan(num_rows, rows_per_part)
    units = [unit for index in range(shards) for unit in Shard(index, shards).units(plan)]
    assert sorted(unit.index for unit in units) == list(range(plan.num_units))
    rows = [row for unit in sorted(units, key=lambda unit: unit.index) for row in range(unit.start, unit.stop)]
    assert rows == list(range(num_rows))
    assert all(unit.num_rows <= rows_per_part for unit in units)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_shards_overlap_where_a_long_plan_gives_both_a_unit(count: int, other_count: int, data: st.DataObject) -> None:
    shard = Shard(data.draw(st.integers(0, count - 1)), count)
    other = Shard(data.draw(st.integers(0, other_count - 1)), other_count)
    plan = UnitPlan(12 * 12, 1)
    units, others = ({unit.index for unit in one.units(plan)} for one in (shard, other))
    assert shard.overlaps(other) == other.overlaps(shard) == bool(units & others)


SLURM = {
    "SLURM_ARRAY_TASK_ID": "14",
    "SLURM_ARRAY_TASK_MIN": "10",
    "SLURM_ARRAY_TASK_MAX": "16",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_STEP": "2",
}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, SLURM, Shard(0, 1)),
        ("2/5", SLURM, Shard(2, 5)),
        ("auto", SLURM, Shard(2, 4)),
        ("auto", {"RANK": "3", "WORLD_SIZE": "8"}, Shard(3, 8)),
        ("auto/6", {"JOB_COMPLETION_INDEX": "5"}, Shard(5, 6)),
    ],
)
def test_shard(text: str | None, environment: dict[str, str], expected: Shard) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("auto", {}, "found none of SLURM_ARRAY_TASK_ID"),
        ("auto", {"JOB_COMPLETION_INDEX": "5"}, "expected auto/n"),
        ("auto/5", {"JOB_COMPLETION_INDEX": "5"}, "got shard 5 of 5"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_COUNT": "3"}, "has holes"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "8"}, "cannot read the scheduler's variables"),
        ("-1/5", {}, "expected i/n"),
        ("0/0", {}, "got shard 0 of 0"),
    ],
)
def test_shards_that_are_refused(text: str, environment: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse_shard(text, environment)
