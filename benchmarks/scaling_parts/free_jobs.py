"""Jobs of local workers whose model computes nothing, in processes of their own: what they use, and whether the parts
are right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..host_parts.cases import PROMPT_TOKENS_OF_A_STEP, prompt
from .free_worker import SETTINGS

ROOT = Path(__file__).parents[2]
CHUNK_ROWS = 50_000
"""Rows of the input that are written at once, and of parts that are compared at once."""


class JobFailed(Exception):
    """A job has not done what was expected. The message says what it printed, or what differs."""


@dataclass(frozen=True)
class FreeJob:
    """A job, and the folder that it has for itself.

    Args:
        tokens: of each completion.
        slots: of each worker.
        step_ms: time of a step of the simulated device.
        output: the folder or the address of the parts; None: in `folder`.
        payload_bytes: of each row, in a column of the input that parts repeat; random, so that they stay as large.
    """

    folder: Path
    rows: int
    tokens: int
    workers: int | str
    rows_per_part: int
    slots: int = 1024
    step_ms: float = 0.0
    flush_seconds: float = 30.0
    output: str | None = None
    payload_bytes: int = 0

    @property
    def parts_folder(self) -> Path:
        return self.folder / "out"

    @property
    def state_folder(self) -> Path:
        return self.folder / "out.rwkv_batch"

    def write(self) -> None:
        """Writes the input and the job file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "rows.parquet"
        schema = pa.schema({"id": pa.int64(), "prompt": pa.string(), "payload": pa.binary()})
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, self.rows, CHUNK_ROWS):
                ids = range(start, min(start + CHUNK_ROWS, self.rows))
                payloads = [os.urandom(self.payload_bytes) for _ in ids] if self.payload_bytes else pa.nulls(len(ids))
                columns = {"id": ids, "prompt": [prompt(row) for row in ids], "payload": payloads}
                writer.write_table(pa.table(columns, schema))
        batch = {"max_batch_size": self.slots, "max_batch_tokens": self.slots + PROMPT_TOKENS_OF_A_STEP}
        settings = {
            "model": {"path": "demo"},
            "engine": {"device": "cpu", **batch},
            "input": {"path": str(path)},
            "sampling": {"max_tokens": self.tokens, "ignore_eos": True},
            "output": {
                "path": self.output or str(self.parts_folder),
                "rows_per_part": self.rows_per_part,
                "flush_seconds": self.flush_seconds,
            },
            "run": {"workers": self.workers},
        }
        (self.folder / "job.yaml").write_text(json.dumps(settings))

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the job's process, which is its coordinator."""
        settings = json.dumps({"step_ms": self.step_ms, "folder": str(self.folder)})
        environment = {**os.environ, SETTINGS: settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "benchmarks.scaling_parts.free_coordinator", str(self.folder / "job.yaml")]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def run(self) -> dict[str, Any]:
        """Runs the job to its end. Returns what it has used; see `used`."""
        self.end(self.start())
        return self.used()

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of the job's process.

        Raises:
            JobFailed: the exit code is not 0.
        """
        if process.wait():
            raise JobFailed(f"exit code {process.returncode}: {(self.folder / 'log.txt').read_text()[-2000:]}")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names in the log of the job."""
        path = self.state_folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in found if event["event"] in names]

    def used(self) -> dict[str, Any]:
        """What the finished job has used.

        Returns:
            `tokens_per_worker_second`: tokens ÷ the seconds of all workers together, from when each has loaded its
            model until the last of them ends; processor seconds of the workers and of the coordinator; and four shares.
            `serving_share` of those seconds lie between the first step of a worker and its last one; `used_share` of
            these are steps; `full_share` of the slots of steps have a row that gets a token; so the tokens of a second
            of a worker are the product of these three × slots ÷ the seconds of a step. `start_seconds` is the mean time
            of a worker from the load of its model to its first step. During `waited_share` of the
            seconds, the thread that makes steps was ready to run and had no core.
        """
        workers = [json.loads(path.read_text()) for path in self.folder.glob("worker-*.json")]
        coordinator = json.loads((self.folder / "coordinator.json").read_text())
        end = max(worker["end"] for worker in workers)
        tokens = self.rows * self.tokens
        seconds = sum(end - worker["ready"] for worker in workers)
        steps, step_seconds, device_seconds, waited_seconds = (
            sum(worker[name] for worker in workers)
            for name in ("steps", "step_seconds", "device_seconds", "waited_seconds")
        )
        return {
            "seconds": end - min(worker["ready"] for worker in workers),
            "tokens_per_worker_second": tokens / seconds,
            "workers_cpu_seconds": sum(worker["cpu_seconds"] for worker in workers),
            "coordinator_cpu_seconds": coordinator.get("serving_cpu_seconds", 0.0),  # no part may have been missing
            "coordinator_cpu_seconds_in_all": coordinator["cpu_seconds"],
            "serving_share": device_seconds / seconds,
            "used_share": step_seconds / device_seconds if device_seconds else 0.0,
            "full_share": tokens / (steps * self.slots) if steps else 0.0,
            "start_seconds": sum(worker["start_seconds"] for worker in workers) / len(workers),
            "waited_share": waited_seconds / seconds,
        }

    def wrong_rows(self) -> Iterator[str]:
        """Compares all parts with the input, some rows at a time. Yields what differs."""
        row = 0
        for path in sorted(self.parts_folder.glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(CHUNK_ROWS):
                found = batch.to_pydict()
                ids = list(range(row, row + batch.num_rows))
                expected = {
                    "id": ids,
                    "prompt": [prompt(one) for one in ids],
                    "completion_tokens": [self.tokens] * len(ids),
                    "status": ["ok"] * len(ids),
                }
                for name, values in expected.items():
                    if found[name] != values:
                        yield f"{path.name}: the column {name} of the rows from {row} on"
                if not all(len(text) == self.tokens for text in found["completion"]):  # a token is a character
                    yield f"{path.name}: a completion of the rows from {row} on"
                row += batch.num_rows
        if row != self.rows:
            yield f"{row} rows, expected {self.rows}"


def memory_of(pid: int) -> float | None:
    """The memory in MiB that a process holds; None where there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


def watch(
    job: FreeJob, process: subprocess.Popen[bytes], seconds: float, until: Callable[[], bool] = lambda: False
) -> dict[str, list[tuple[float, float]]]:
    """Notes the memory of a running job's processes until it ends, or until a condition holds.

    Args:
        seconds: between two looks.

    Returns:
        "coordinator" or "worker N" → (seconds since the start, MiB) of each look.
    """
    start = time.time()
    found: dict[str, list[tuple[float, float]]] = {}
    while process.poll() is None and not until():
        placed = [event for event in job.events("worker") if event["state"] == "placed" and event["time"] >= start]
        pids = {"coordinator": process.pid, **{f"worker {event['worker']}": event["pid"] for event in placed}}
        for name, pid in pids.items():
            if (held := memory_of(pid)) is not None:
                found.setdefault(name, []).append((time.time() - start, held))
        time.sleep(seconds)
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the coordinator at once; its workers end with it."""
    process.send_signal(signal.SIGKILL)
    process.wait()
