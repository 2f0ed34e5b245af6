"""The server for Prometheus: what it answers while a job runs, and a port that is taken."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rwkv_batch.errors import ConfigurationError, MissingExtraError
from rwkv_batch.job.report.metrics_server import MetricsServer
from rwkv_batch.job.report.run_status import METRICS, prometheus

from ..conftest import Job


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answer(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return str(response.read().decode())


def samples(text: str) -> Iterator[tuple[str, str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, family.type, sample.labels, sample.value


def test_it_answers_what_metrics_prom_has(port: int) -> None:
    values = {field: 1.5 * number for number, field in enumerate(METRICS)}
    with closing(MetricsServer(port, 'a "job"', "1/2")) as server:
        assert list(samples(answer(port))) == []  # the model loads
        server.values = lambda: values
        assert list(samples(answer(port))) == list(samples(prometheus(values, 'a "job"', "1/2").decode()))
    with pytest.raises(OSError):
        answer(port)


def test_a_running_job_answers_and_its_end_frees_the_port(job: Job, port: int) -> None:
    job.set(run__metrics_port=port)
    process = job.start(FAKE_HOLD_AFTER=3)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "held":
        assert process.poll() is None
    found = {name: (labels, value) for name, _, labels, value in samples(answer(port))}
    assert found["rwkv_batch_rows"] == ({"job": "out", "shard": "0/1"}, 30.0)
    process.kill()
    process.wait()
    assert job.run() == 0
    socket.create_server(("127.0.0.1", port)).close()


def test_a_port_that_is_taken_is_refused_before_the_model_loads(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert job.set(run__metrics_port=taken).run() == 2
        assert f"run.metrics_port: got {taken}, expected a port of 127.0.0.1 that is free" in capsys.readouterr().err
        with pytest.raises(ConfigurationError, match="a port of its own"):
            MetricsServer(taken, "job", "0/1")


def test_without_the_package_the_extra_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"rwkv_batch\[metrics\]"):
        MetricsServer(port, "job", "0/1")
