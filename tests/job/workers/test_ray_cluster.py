"""What a worker reserves of a cluster of Ray, without a cluster."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from job.conftest import Job
from rwkv_batch.errors import ConfigurationError, MissingExtraError
from rwkv_batch.job.load import load_job
from rwkv_batch.job.workers import ray_cluster
from rwkv_batch.job.workers.devices import worker_places

GPU_NODE = {"GPU": 4.0, "CPU": 32.0}
NODES = [GPU_NODE, GPU_NODE, {"CPU": 8.0}, {"object_store_memory": 1.0}]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with what is used of Ray. Its `init` sets a handler of SIGTERM, as Ray's does."""
    found = SimpleNamespace(is_connected=False, given=None, resources=NODES)

    def init(address: str | None, **_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        found.given, found.is_connected = address, address != "nowhere"
        if address == "nowhere":
            raise ConnectionError("ids and a stack\nnobody answers")

    found.init = init
    found.is_initialized = lambda: found.is_connected
    found.nodes = lambda: (
        [{"Alive": True, "Resources": one} for one in found.resources]
        + [{"Alive": False, "Resources": {"GPU": 100.0, "CPU": 1.0}}]
    )
    monkeypatch.setitem(sys.modules, "ray", found)
    return found


@pytest.mark.parametrize(
    ("settings", "engine_device", "nodes", "expected"),
    [
        ({}, "auto", NODES, (8, "cuda", 1, 1)),
        ({}, "cpu", NODES, (3, "cpu", 0, 8)),
        ({}, "auto", NODES[2:], (1, "cpu", 0, 8)),
        ({}, "cuda", NODES[2:], (1, "cuda", 1, 1)),
        ({"num_gpus": 2, "num_cpus": 6}, "auto", NODES, (4, "cuda", 2, 6)),
        ({"num_gpus": 1}, "auto", [], (1, "cuda", 1, 1)),
        ({"num_gpus": 0, "num_cpus": 2}, "auto", NODES, (3, "cpu", 0, 2)),
    ],
)
def test_places(ray: Any, job: Job, settings: Any, engine_device: str, nodes: Any, expected: Any) -> None:
    ray.resources = nodes
    job.set(run__backend="ray", run__ray=settings, engine__device=engine_device)
    places = worker_places(load_job(job.write()))
    assert places is not None
    (one,) = {(place.device, place.reserved.num_gpus, place.reserved.num_cpus) for place in places if place.reserved}
    assert (len(places), *one) == expected


def test_the_number_of_workers_is_that_of_the_job_file(ray: Any, job: Job) -> None:
    """Nodes may come later."""
    job.set(run__backend="ray", run__workers=50, run__ray={"address": "auto", "num_gpus": 1})
    places = worker_places(load_job(job.write()))
    assert places is not None
    assert len(places) == 50
    assert ray.given == "auto"


def test_a_signal_is_handled_as_before(ray: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    own = lambda *_: None  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    try:
        ray_cluster.connected(None)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_contradictions_are_refused(ray: Any, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.set(run__backend="ray", run__ray={"address": "nowhere"})
    with pytest.raises(ConfigurationError, match=r"^run.ray.address: got 'nowhere', where .*: nobody answers$"):
        worker_places(load_job(job.write()))
    job.set(run__ray={"num_gpus": 0}, engine__device="cuda")
    with pytest.raises(ConfigurationError, match=r"^run.ray.num_gpus: got 0 beside engine.device: cuda"):
        worker_places(load_job(job.write()))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"rwkv_batch\[ray\]"):
        worker_places(load_job(job.write()))
