"""A small job in a temporary folder, run in this process with the fake engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fakes.object_store import Bucket, hurry, stores

from job import fake_llm
from rwkv_batch import run
from rwkv_batch.job.workers import local

HERE = Path(__file__).parent


@dataclass
class Job:
    """A job file with its folders; `settings` may be changed before each run."""

    folder: Path
    settings: dict[str, Any]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def output(self) -> Path:
        return Path(self.settings["output"]["path"])

    @property
    def state(self) -> Path:
        return Path(f"{self.output}.rwkv_batch")

    def set(self, **dotted: Any) -> Job:
        """set(sampling__n=2) sets sampling.n."""
        for name, value in dotted.items():
            section, _, key = name.partition("__")
            self.settings.setdefault(section, {})[key] = value
        return self

    def write(self) -> str:
        self.file.write_text(yaml.safe_dump(self.settings))
        return str(self.file)

    def input(self, name: str = "prompts.parquet", **columns: Any) -> Job:
        pq.write_table(pa.table(columns), self.folder / name)
        return self.set(input__path=str(self.folder / name))

    def lines(self, *lines: str, name: str = "prompts.jsonl") -> Job:
        (self.folder / name).write_text("\n".join(lines) + "\n")
        return self.set(input__path=str(self.folder / name))

    def run(self, *arguments: str) -> int:
        return run.main([self.write(), *arguments])

    def table(self) -> pa.Table:
        """All parts, in the order of their names."""
        return pa.concat_tables([pq.read_table(path) for path in sorted(self.output.iterdir())])

    def rows(self) -> list[dict[str, Any]]:
        return self.table().to_pylist()

    def parts(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.output.iterdir())}

    def start(self, *arguments: str, **environment: object) -> subprocess.Popen[str]:
        """The real command, with the fake engine, in a process of its own."""
        variables = {name: str(value) for name, value in environment.items()}
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_run.py"), self.write(), *arguments],
            env={**os.environ, "PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{HERE.parent}", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def real_engine() -> None:
    """A test that asks for this runs the bundled model."""


@pytest.fixture(autouse=True)
def fake_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_engine" in request.fixturenames:
        return
    monkeypatch.setitem(sys.modules, "rwkv_batch.llm", fake_llm)
    monkeypatch.setattr(fake_llm.LLM, "loaded", 0)
    monkeypatch.setattr(local, "PROGRAM", "job.fake_worker")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that the engine serves in this process."""
    rows: list[int] = []
    original = fake_llm.Serving._complete

    def complete(self: Any, row: Any) -> None:
        rows.append(row.row.row)
        original(self, row)

    monkeypatch.setattr(fake_llm.Serving, "_complete", complete)
    return rows


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of files, and pull no plugs."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rwkv_batch-") as folder:
        yield Path(folder)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """30 rows in parts of 10. Processes that still run when the test ends are killed."""
    settings = {
        "model": {"path": "demo"},
        "input": {},
        "sampling": {"max_tokens": 8},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 10},
    }
    job = Job(tmp_path, settings)
    yield job.input(id=[f"row-{i}" for i in range(30)], prompt=[f"prompt {i}" for i in range(30)])
    for process in job.processes:
        process.kill()
        process.communicate()


@pytest.fixture
def small(job: Job) -> Job:
    """4 rows in two parts, a segment for each row."""
    job.input(id=list(range(4)), prompt=[f"prompt {i}" for i in range(4)])
    return job.set(output__rows_per_part=3, output__flush_seconds=0, sampling__n=2)


@pytest.fixture(scope="session")
def make_bucket() -> Iterator[Any]:
    with stores() as make:
        yield make


@pytest.fixture
def bucket(make_bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket of an S3 server behind a fault proxy, whose waits are short in this process."""
    found: Bucket = make_bucket()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    hurry(monkeypatch)
    return found
