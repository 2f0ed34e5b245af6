"""The command as a process: killed, signalled, started twice, spread over shards, and watched for its memory."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.data.stopping import StopSignals

from .conftest import Job

ROWS = 120


@pytest.fixture
def slow(job: Job) -> Job:
    """Long enough to be disturbed: 120 rows in parts of 25, committed as they come."""
    job.input(id=list(range(ROWS)), prompt=[f"prompt {i}" for i in range(ROWS)])
    return job.set(output__rows_per_part=25, output__flush_seconds=0.05)


def undisturbed(job: Job) -> dict[str, bytes]:
    path = job.output
    assert job.set(output__path=f"{path}-undisturbed").run() == 0
    parts = job.parts()
    job.set(output__path=str(path))
    return parts


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def segments(job: Job) -> list[Path]:
    return list(job.state.glob("unit-*/*.seg"))


def test_sigkill_at_random_moments(slow: Job) -> None:
    parts = undisturbed(slow)
    dice = random.Random(1)
    kills = 0
    while kills < 4:
        process = slow.start(FAKE_DELAY=0.01)
        before = (len(segments(slow)), len(list(slow.output.glob("*"))))
        wait_for(lambda before=before: (len(segments(slow)), len(list(slow.output.glob("*")))) != before, process)
        time.sleep(dice.uniform(0, 0.25))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if slow.output.exists():
            assert slow.parts().items() <= parts.items()
    assert slow.run() == 0
    assert slow.parts() == parts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_commits_what_is_finished(slow: Job, number: signal.Signals) -> None:
    slow.set(output__rows_per_part=200, output__flush_seconds=1000)
    process = slow.start(FAKE_DELAY=0.02)
    wait_for(lambda: (slow.state / "log.jsonl").exists() and "model" in (slow.state / "log.jsonl").read_text(), process)
    time.sleep(0.3)
    assert not segments(slow)
    process.send_signal(number)
    sent = time.monotonic()
    _, message = process.communicate(timeout=30)
    assert process.returncode == 75, message
    assert time.monotonic() - sent < 10
    assert f"{number.name}: committing finished rows" in message and "start the same command again" in message
    (segment,) = segments(slow)
    assert 0 < pq.read_metadata(segment).num_rows < ROWS
    assert '"event": "stopped"' in (slow.state / "log.jsonl").read_text()
    assert slow.run() == 0
    assert [row["id"] for row in slow.rows()] == list(range(ROWS))


def test_a_hang_up_under_nohup_is_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_second_signal_ends_the_process_at_once(slow: Job) -> None:
    slow.set(output__flush_seconds=0)
    process = slow.start(FAKE_DELAY=0.02, STUCK_DISK=1)
    wait_for(lambda: list(slow.state.glob("tmp/*")), process)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=5)
    assert process.returncode == 130


def test_two_processes_on_the_same_job(slow: Job) -> None:
    parts = undisturbed(slow)
    processes = [slow.start(FAKE_DELAY=0.005) for _ in range(2)]
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0], results
    assert slow.parts() == parts
    assert not list(slow.state.glob("unit-*"))


def test_shards_in_any_order(slow: Job, capsys: pytest.CaptureFixture[str]) -> None:
    parts = undisturbed(slow)
    for shard in ("2/3", "0/3"):
        assert slow.run("--shard", shard) == 0
        assert "other shards are not" in capsys.readouterr().out
        assert not (slow.state / "_SUCCESS.json").exists()
    assert slow.run("--shard", "1/3") == 0
    assert slow.parts() == parts
    success = json.loads((slow.state / "_SUCCESS.json").read_text())
    assert success["rows"] == ROWS
    names = {path.name for path in slow.state.iterdir()}
    assert {"log-0-of-3.jsonl", "log-1-of-3.jsonl", "metrics-2-of-3.prom", "report.html"} <= names
    assert slow.run() == 0


def test_shards_at_the_same_time(slow: Job) -> None:
    parts = undisturbed(slow)
    processes = [slow.start("--shard", f"{i}/3", FAKE_DELAY=0.002) for i in range(3)]
    results = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0, 0], results
    assert slow.parts() == parts
    assert json.loads((slow.state / "_SUCCESS.json").read_text())["rows"] == ROWS


def test_a_scheduler_names_the_shard(slow: Job) -> None:
    process = slow.start("--shard", "auto", RANK=1, WORLD_SIZE=2)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(slow.parts()) == ["part-00001-of-00005.parquet", "part-00003-of-00005.parquet"]


def test_memory_does_not_grow_with_the_input(job: Job, tmp_path_factory: pytest.TempPathFactory) -> None:
    """10,000 and 100,000 rows, 90 MB of text and far more of Python objects apart."""
    job.folder = tmp_path_factory.mktemp("memory")
    peaks = {}
    for count in (10_000, 100_000):
        path = job.folder / f"{count}.parquet"
        schema = pa.schema([("prompt", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, count, 10_000):
                prompts = [f"{i} {'x' * 1000}" for i in range(start, start + 10_000)]
                writer.write_table(pa.table({"prompt": prompts}), row_group_size=10_000)
        job.set(input__path=str(path), output__path=str(job.folder / f"out-{count}"), output__rows_per_part=2000)
        process = job.start()
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        peaks[count] = int(output.split("VmHWM:")[1].split()[0]) / 1024
    print(peaks)
    assert peaks[100_000] - peaks[10_000] < 45, peaks
