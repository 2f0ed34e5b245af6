"""A property of jobs: whatever the tables are, and wherever a run dies, a job ends, or is refused before it begins."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st

from job import fake_llm
from job.faulty_storage import EXIT_CRASHED, Countdown, SteppingStorage, crash
from rwkv_batch.job.folders import Folders

from .conftest import Job
from .prepared import in_child
from .tables import KINDS, column, sibling

PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def write_files(folder: Path, kinds: list[pa.DataType], dice: random.Random) -> list[pa.Table]:
    """Writes one to three files. A column may lack, be required, or be of a related type in each of them."""
    tables = []
    for index in range(dice.randint(1, 3)):
        count = dice.choice([0, 1, 5, 9])
        fields, arrays = [], []
        for number, kind in enumerate([pa.string(), *kinds]):
            if number and dice.random() < 0.2:
                continue
            kind = sibling(kind, dice) if dice.random() < 0.3 else kind
            nullable = pa.types.is_null(kind) or dice.random() < 0.6
            fields.append(pa.field(f"column {number}" if number else "prompt", kind, nullable))
            arrays.append(column(kind, count, dice, nullable=nullable))
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=4)
        tables.append(table)
    return tables


def run(job: Job, crash_at: int) -> int:
    """Runs the job in a process of its own, which dies at a durable step. It exits with 100 if it refuses too late."""

    def act() -> int:
        with pytest.MonkeyPatch.context() as patch:
            storage = Countdown(crash_at, crash)
            patch.setattr(Folders, "open_storage", lambda folders: SteppingStorage(folders.file("tmp"), storage))
            code = job.run()
        return 100 if code == 2 and (fake_llm.LLM.loaded or job.state.exists()) else code

    return in_child(act)


@settings(max_examples=settings().max_examples // 3, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(st.lists(KINDS, max_size=4), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 60))
def test_every_table_is_served_or_refused(kinds: list[pa.DataType], seed: int, n: int, crash_at: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        folder = Path(name)
        (folder / "in").mkdir()
        try:
            tables = write_files(folder / "in", kinds, dice)
            for path in (folder / "in").iterdir():
                pq.read_table(path)
        except (pa.ArrowException, OSError, UnicodeEncodeError):
            reject()  # pyarrow cannot write this table, or not read what it has written
        job = Job(folder, {"model": {"path": "demo"}, "input": {"path": str(folder / "in")}, "sampling": {"n": n}})
        job.settings["output"] = {"path": str(folder / "out"), "rows_per_part": 6, "flush_seconds": 0}
        code = run(job, crash_at)
        event(f"exit {code}")
        if code == 2:
            assert job.run("--dry-run") == 2
            return
        for _ in range(9):
            if code != EXIT_CRASHED:
                break
            code = run(job, dice.randint(20, 90))
        event(f"at the end {code}")
        assert code in (0, 3)
        assert_is_whole(job, tables, n)


def assert_is_whole(job: Job, tables: list[pa.Table], n: int) -> None:
    """Every row has its samples, and what the files hold in columns of one type."""
    rows: list[dict[str, Any]] = [
        row for path in sorted(job.output.iterdir()) for row in pq.read_table(path).to_pylist()
    ]
    prompts = [prompt for table in tables for prompt in table["prompt"].to_pylist()]
    samples = [1 if prompt is None else n for prompt in prompts]
    assert len(rows) == sum(samples)
    for name in {name for table in tables for name in table.column_names}:
        kinds = {table.schema.field(name).type for table in tables if name in table.column_names}
        if len(kinds) > 1:
            continue
        given = [
            value
            for table in tables
            for value in (table[name].to_pylist() if name in table.column_names else [None] * len(table))
        ]
        expected = [value for value, count in zip(given, samples, strict=True) for _ in range(count)]
        bad = [
            (row[name], value)
            for row, value in zip(rows, expected, strict=True)
            if row["error_code"] != "read_error" and not alike(row[name], value)
        ]
        assert not bad, (kinds, bad[:3])


def alike(found: Any, expected: Any) -> bool:
    """Whether two values are equal. Parquet has no days as timestamps and no seconds: their types change."""
    return str(found) == str(expected)
