"""Jobs in a small cluster of Ray on this machine, with the fake engine: actors, nodes and drivers that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from job.conftest import Job
from rwkv_batch import run_job
from rwkv_batch.job.workers import ray_cluster

TESTS = Path(__file__).parents[2]
HANG = 280.0
"""Seconds after which a test has failed."""
HEALTH = {"initial_delay_ms": 1000, "period_ms": 1000, "failure_threshold": 2, "timeout_ms": 10_000}
"""Ray notices within three seconds that a node does not run any more, and waits longer for one that is slow."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose first node has 4 CPUs; a row takes 50 ms."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="ray")  # paths of sockets are short
        for name, value in {"AUTH_TOKEN": "0" * 48, "TMPDIR": folder, "USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS.parent, TESTS))))  # of the actors' processes
        patch.setenv("FAKE_DELAY", "0.05")
        head = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 100 << 20}
        config = {f"health_check_{name}": value for name, value in HEALTH.items()}
        made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": config})
        patch.setenv("RAY_ADDRESS", made.address)
        ray.init(made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def in_cluster(cluster: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> Job:
    """60 rows in parts of 10, for two workers with a CPU each."""
    monkeypatch.setattr(ray_cluster, "PROGRAM", "job.fake_ray_worker")
    job.input(id=list(range(60)), prompt=[f"prompt {i}" for i in range(60)])
    job.set(output__flush_seconds=0.1, engine__device="cpu")
    return job.set(run__backend="ray", run__workers=2, run__ray={"num_cpus": 1})


def of_one_process(job: Job) -> dict[str, bytes]:
    """The parts of the same job, served by one process, in another folder."""
    output = job.output
    job.set(output__path=f"{output}-alone", run__backend="local", run__workers="auto")
    assert job.run("--allow-errors") == 0
    parts = job.parts()
    job.set(output__path=str(output), run__backend="ray", run__workers=2)
    return parts


class Running:
    """A job in a thread of this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = run_job(self._job.write())
        except BaseException as error:
            self.outcome = error

    def wait(self, until: Callable[[], Any]) -> Any:
        """Waits until a function returns something, while the job runs."""

        def found() -> Any:
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return until()

        return wait(found)

    def end(self) -> Any:
        self._thread.join(HANG)
        assert self.outcome is not None
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def events(job: Job, name: str, **fields: Any) -> list[dict[str, Any]]:
    """The events in the job's log."""
    log = job.state / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if one["event"] == name and fields.items() <= one.items()]


def wait(until: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANG
    while not (found := until()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_an_actor_that_is_killed_in_a_unit_changes_no_byte(in_cluster: Job):
    parts = of_one_process(in_cluster)
    running = Running(in_cluster)
    running.wait(lambda: events(in_cluster, "commit"))
    os.kill(events(in_cluster, "worker", state="placed")[0]["pid"], signal.SIGKILL)
    assert running.end().is_complete
    assert in_cluster.parts() == parts
    (ended,) = events(in_cluster, "worker", state="ended")
    assert "its worker process has died" in ended["how"]


@pytest.mark.soak
def test_a_row_that_ends_its_actor_becomes_an_error_row(in_cluster: Job):
    prompts = ["crash" if i == 17 else f"prompt {i}" for i in range(60)]
    in_cluster.input(id=list(range(60)), prompt=prompts)
    assert Running(in_cluster).end().errors == 1
    rows = in_cluster.rows()
    assert [row["id"] for row in rows] == list(range(60))
    assert [(row["id"], row["error_code"]) for row in rows if row["status"] == "error"] == [(17, "engine_crash")]
    assert "its worker process has died" in rows[17]["error"]


@pytest.mark.soak
def test_actors_wait_for_nodes_and_a_node_that_is_lost_makes_no_row_suspect(cluster: Any, in_cluster: Job):
    parts = of_one_process(in_cluster)
    in_cluster.set(run__ray={"num_cpus": 0, "resources": {"spot": 1}})
    running = Running(in_cluster)
    first = cluster.add_node(num_cpus=2, resources={"spot": 2}, object_store_memory=100 << 20)
    running.wait(lambda: events(in_cluster, "commit"))
    os.kill(first.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    second = cluster.add_node(num_cpus=2, resources={"spot": 2}, object_store_memory=100 << 20)
    assert running.end().is_complete
    assert in_cluster.parts() == parts
    assert {one["how"] for one in events(in_cluster, "worker", state="ended")} == {"the loss of its node"}
    cluster.remove_node(second)
    cluster.remove_node(first)


@pytest.mark.soak
def test_the_same_command_goes_on_after_its_driver_was_killed(in_cluster: Job):
    parts = of_one_process(in_cluster)
    driver = in_cluster.start()
    wait(lambda: driver.poll() is not None or events(in_cluster, "commit"))
    driver.kill()
    driver.wait()
    assert Running(in_cluster).end().is_complete
    assert in_cluster.parts() == parts


@pytest.mark.soak
def test_a_driver_that_is_stopped_commits_and_the_same_command_goes_on(in_cluster: Job):
    parts = of_one_process(in_cluster)
    driver = in_cluster.start()
    wait(lambda: driver.poll() is not None or events(in_cluster, "commit"))
    driver.terminate()
    assert driver.wait(HANG) == 75
    assert Running(in_cluster).end().is_complete
    assert in_cluster.parts() == parts


@pytest.mark.soak
def test_an_actor_that_hangs_is_replaced(in_cluster: Job):
    prompts = ["hang" if i == 17 else f"prompt {i}" for i in range(60)]
    in_cluster.input(id=list(range(60)), prompt=prompts).set(run__worker_timeout=3.0)
    assert Running(in_cluster).end().errors == 1
    (bad,) = [row for row in in_cluster.rows() if row["status"] == "error"]
    assert (bad["id"], bad["error_code"]) == (17, "engine_crash")
