"""Workers in processes of their own: the parts are those of one process, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes.fork_server import forked_processes

from job.conftest import Job
from rwkv_batch import run_job
from rwkv_batch.errors import Stopped
from rwkv_batch.job.workers import local, local_worker


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    """Workers of this process are forked from a server, which has imported torch."""
    with forked_processes():
        yield


def alone(job: Job) -> list[dict[str, Any]]:
    """The rows of the same job, which this process serves."""
    other = Job(job.folder, {**job.settings, "output": {**job.settings["output"], "path": f"{job.output}-alone"}})
    other.settings["run"] = {}
    assert run_job(other.settings).is_complete
    return other.rows()


def events(job: Job, kind: str) -> list[dict[str, Any]]:
    """The events of the job so far; the last line of the log may be torn."""
    found = []
    with suppress(FileNotFoundError, ValueError):
        for line in (job.state / "log.jsonl").read_text().splitlines():
            found.append(json.loads(line))
    return [event for event in found if event["event"] == kind]


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Waits until a condition is true, or the process has ended. Returns whether it still runs."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return False


def worker_pids(job: Job) -> list[int]:
    return [event["pid"] for event in events(job, "worker") if event["state"] == "placed"]


def num_segments(job: Job) -> int:
    return len(events(job, "commit"))


def has_more_segments(job: Job, known: int) -> bool:
    return num_segments(job) > known


def has_more_workers(job: Job, known: int) -> bool:
    return len(worker_pids(job)) > known


def is_running(pid: int) -> bool:
    """Whether a process runs, and has not only left its number behind."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_row_that_ends_its_process_is_an_error_row_and_all_others_are_served(job: Job) -> None:
    prompts = [f"prompt {i}" for i in range(80)]
    prompts[33] = "crash"
    job.input(id=list(range(80)), prompt=prompts).set(run__workers=2)
    outcome = run_job(job.settings)
    assert (outcome.rows, outcome.errors, outcome.is_complete) == (80, 1, True)
    rows = job.rows()
    assert (rows[33]["status"], rows[33]["error_code"], rows[33]["completion"]) == ("error", "engine_crash", None)
    assert "signal 9 (SIGKILL)" in rows[33]["error"]
    prompts[33] = "other"
    expected = alone(job.input(id=list(range(80)), prompt=prompts))
    assert [row for row in rows if row["id"] != 33] == [row for row in expected if row["id"] != 33]
    assert [event["part"] for event in events(job, "publish")].count("part-00003-of-00008.parquet") == 1
    report = json.loads((job.state / "report.json").read_text())
    (run,) = report["runs"]
    assert run["workers"].keys() == {"0", "1"}
    for name in ("rows", "steps", "completion_tokens"):
        assert 0 < run[name] <= sum(worker[name] for worker in run["workers"].values()), "rows are served again"
    assert all(worker["utilisation"]["slots"] > 0 and worker["phases"] for worker in run["workers"].values())


def test_a_bad_row_ends_a_job_that_stops_at_one(job: Job) -> None:
    job.input(id=list(range(30)), prompt=[None if i == 12 else f"prompt {i}" for i in range(30)])
    outcome = run_job(job.set(run__workers=2, run__on_row_error="stop").settings)
    assert not outcome.is_finished
    assert outcome.stopped_at.startswith("row 12 (id 12): null_prompt")


def test_sigterm_commits_what_is_finished_and_ends_the_workers(job: Job) -> None:
    """A second start goes on; the parts are those of one process."""
    job.set(run__workers=2, output__flush_seconds=1000)
    process = job.start(FAKE_DELAY=0.2)
    assert wait_until(process, lambda: len(events(job, "worker")) >= 4), process.communicate()
    pids = worker_pids(job)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert not any(map(is_running, pids))
    assert run_job(job.settings).is_complete
    assert job.rows() == alone(job)


def test_a_signal_while_workers_start_leaves_no_process_behind(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that has called `run_job` goes on, so that its end ends no worker."""
    pids = []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    class StartedAtASignal(local.LocalWorker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pids.append(self._process.pid)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(local, "LocalWorker", StartedAtASignal)
    try:
        with pytest.raises(Stopped, match="SIGTERM"):
            run_job(job.set(run__workers=1).settings)
    finally:
        signal.signal(signal.SIGTERM, before)
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids and not any(map(is_running, pids))


def test_sigkill_of_random_workers_and_of_the_coordinator(job: Job, soak_seed: int) -> None:
    """The same command is started again after each end of the coordinator, until the job is done."""
    print(f"seed {soak_seed}")
    chance = random.Random(soak_seed)
    job.input(id=list(range(60)), prompt=[f"prompt {i}" for i in range(60)])
    job.set(run__workers=2, output__flush_seconds=0)
    for workers_to_kill in (2, 0):
        process = job.start(FAKE_DELAY=0.1)
        for _ in range(workers_to_kill):
            known = len(worker_pids(job))
            if not wait_until(process, partial(has_more_segments, job, num_segments(job))):
                break
            os.kill(chance.choice([pid for pid in worker_pids(job) if is_running(pid)]), signal.SIGKILL)
            wait_until(process, partial(has_more_workers, job, known))
        if workers_to_kill:
            process.kill()
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert process.returncode == 0
    assert job.rows() == alone(job)
    assert pq.read_table(job.output).num_rows == 60
    deadline = time.monotonic() + 60
    while any(map(is_running, worker_pids(job))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, worker_pids(job))), "workers end with their coordinator"


@pytest.mark.soak
def test_a_row_that_stops_its_process_is_an_error_row(job: Job) -> None:
    """The worker makes no step for `run.worker_timeout` seconds, and is replaced."""
    prompts = [f"prompt {i}" for i in range(30)]
    prompts[17] = "hang"
    job.input(id=list(range(30)), prompt=prompts).set(run__workers=2, run__worker_timeout=5)
    outcome = run_job(job.settings)
    assert (outcome.rows, outcome.errors, outcome.is_complete) == (30, 1, True)
    assert job.rows()[17]["error_code"] == "engine_crash" and "no step for" in job.rows()[17]["error"]


def test_shards_may_have_workers(job: Job) -> None:
    job.set(run__workers=2)
    assert not run_job(job.settings, shard="0/2").is_complete
    assert run_job(job.settings, shard="1/2").is_complete
    assert job.rows() == alone(job)


def test_two_workers_with_the_real_engine(job: Job, real_engine: None) -> None:
    job.input(id=list(range(40)), prompt=[f"import {chr(97 + i % 26)}" for i in range(40)])
    job.set(engine__device="cpu", engine__max_batch_size=8, run__workers=2, sampling__max_tokens=6)
    assert run_job(job.settings).is_complete
    assert job.rows() == alone(job)


def test_workers_divide_a_cpu(job: Job, real_engine: None) -> None:
    """The sizes that a worker is started with are those of its share of the memory."""
    from rwkv_batch.job.load import load_job
    from rwkv_batch.job.prepare import prepare
    from rwkv_batch.job.workers.devices import worker_places
    from rwkv_batch.job.workers.serve import inspect_for, worker_starts

    config = load_job(job.set(engine__device="cpu", run__workers=3, model__sha256=None).settings)
    places = worker_places(config)
    assert places is not None
    prepared = prepare(config, lambda model, engine: inspect_for(places, model, engine))
    starts = worker_starts(prepared, places)
    assert [start.number for start in starts] == [0, 1, 2]
    plan = prepared.model.memory
    for start in starts:
        assert (start.num_processes, start.cuda_index) == (3, None)
        assert start.job.engine.max_batch_size == plan.max_batch_size
        assert start.job.output.rows_per_part == prepared.plan.rows_per_part
    assert local_worker.main.__module__ == "rwkv_batch.job.workers.local_worker"
