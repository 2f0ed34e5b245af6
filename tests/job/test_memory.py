"""Memory is bounded in bytes: jobs with large rows in a process that may not allocate what all rows hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process allocates")
HERE = Path(__file__).parent
LIMIT = 600
"""MiB. Both jobs need less than 400."""


def run_limited(job: Job, engine: str) -> int:
    """The exit code of the job in a process that may allocate LIMIT beside its modules."""
    script = [sys.executable, str(HERE / "limited_run.py"), str(LIMIT), engine, job.write()]
    paths = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent)))
    # Memory that an allocator reserves counts as used: one allocator with few arenas reserves little.
    pools = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    return subprocess.run(script, env={**os.environ, "PYTHONPATH": paths, **pools}, check=False).returncode


def write(job: Job, **columns: list[str]) -> None:
    """Writes an input with small pages: a page is read as a whole."""
    path = str(job.folder / "large.parquet")
    pq.write_table(pa.table(columns), path, use_dictionary=False, write_batch_size=1, data_page_size=1 << 20)
    job.set(input__path=path, output__rows_per_part=1000)


def test_rows_with_a_large_other_column(job: Job) -> None:
    """300 MB of a column that the parts repeat."""
    write(job, prompt=[f"prompt {i}" for i in range(300)], other=[f"{i:08d}" + "word " * 200_000 for i in range(300)])
    assert run_limited(job, "fake") == 0
    assert job.table()["other"].to_pylist()[-1].startswith("00000299word ")
    (run,) = json.loads((job.state / "report.json").read_text())["runs"]
    assert run["memory"]["peak_bytes"] > 100 << 20
    assert "largest host memory" in (job.state / "report.html").read_text()


def test_rows_with_large_prompts(job: Job) -> None:
    """100 MB of prompts, 500 MB with their token ids, which become error rows."""
    write(job, prompt=[f"{i:08d}" + "word " * 100_000 for i in range(200)])
    job.set(engine__device="cpu", input__max_prompt_tokens=10, output__input_columns=[])
    assert run_limited(job, "real") == 3
    assert set(job.table()["error_code"].to_pylist()) == {"prompt_too_long"}
