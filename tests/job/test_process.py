"""The command as a process: killed, signalled, started twice, spread over shards, and watched for its memory."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch.job.stopping import StopSignals

from .conftest import Job

ROWS = 120
KILLS = 4
FOREVER = 86_400
"""Seconds."""


@pytest.fixture
def long(job: Job) -> Job:
    """120 rows in parts of 25, committed as they come."""
    job.input(id=list(range(ROWS)), prompt=[f"prompt {i}" for i in range(ROWS)])
    return job.set(output__rows_per_part=25, output__flush_seconds=0.05)


def undisturbed(job: Job) -> dict[str, bytes]:
    path = job.output
    assert job.set(output__path=f"{path}-undisturbed").run() == 0
    parts = job.parts()
    job.set(output__path=str(path))
    return parts


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait while the process lives. A wait without an end is ended by pytest-timeout."""
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def wait_until_held(process: subprocess.Popen[str]) -> None:
    """Until the model has finished the rows of FAKE_HOLD_AFTER and waits."""
    assert process.stdout
    line = process.stdout.readline()
    assert line == "held\n", line + process.communicate()[1]


def segments(job: Job) -> list[Path]:
    return list(job.state.glob("unit-*/*.seg"))


def test_sigkill_at_random_moments(long: Job, soak_seed: int) -> None:
    """Each process is held before it could finish the job: it is killed while it works or while it waits."""
    parts = undisturbed(long)
    dice = random.Random(soak_seed)

    def files() -> set[Path]:
        return {*segments(long), *long.output.glob("*")}

    for _ in range(KILLS):
        before = files()
        process = long.start(FAKE_DELAY=0.01, FAKE_HOLD_AFTER=ROWS // (KILLS + 1))
        wait_for(lambda before=before: files() != before, process)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.25))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if long.output.exists():
            assert long.parts().items() <= parts.items()
    assert long.run() == 0
    assert long.parts() == parts


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_commits_what_is_finished(long: Job, name: str) -> None:
    long.set(output__rows_per_part=200, output__flush_seconds=FOREVER)
    process = long.start(FAKE_HOLD_AFTER=30)
    wait_until_held(process)
    assert not segments(long)
    process.send_signal(signal.Signals[name])
    _, message = process.communicate()
    assert process.returncode == 75, message
    assert f"{name}: committing finished rows" in message and "start the same command again" in message
    (segment,) = segments(long)
    assert pq.read_metadata(segment).num_rows == 30
    assert '"event": "stopped"' in (long.state / "log.jsonl").read_text()
    assert long.run() == 0
    assert [row["id"] for row in long.rows()] == list(range(ROWS))


def test_a_hang_up_under_nohup_does_not_stop_a_job(long: Job) -> None:
    release = long.folder / "release"
    process = long.start(FAKE_NOHUP=1, FAKE_HOLD_AFTER=30, FAKE_RELEASE=release)
    wait_until_held(process)
    process.send_signal(signal.SIGHUP)
    release.touch()
    _, message = process.communicate()
    assert process.returncode == 0, message
    assert "SIGHUP" not in message
    assert [row["id"] for row in long.rows()] == list(range(ROWS))


def test_an_ignored_hang_up_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_second_signal_ends_the_process_at_once(long: Job) -> None:
    """The first one is sent while the writing of a segment is stuck, and cannot end the process."""
    long.set(output__flush_seconds=0)
    process = long.start(STUCK_DISK=1)
    wait_for(lambda: list(long.state.glob("tmp/seg-*")), process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    assert any("committing finished rows" in line for line in process.stderr)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 130


def end_together(job: Job, shards: Sequence[str], **environment: object) -> None:
    """A process for each shard; all of them have begun to finish rows before any may go on."""
    release = job.folder / "release"
    arguments = [["--shard", shard] if shard else [] for shard in shards]
    environment = {"FAKE_DELAY": 0.002, "FAKE_HOLD_AFTER": 3, "FAKE_RELEASE": release, **environment}
    processes = [job.start(*some, **environment) for some in arguments]
    for process in processes:
        wait_until_held(process)
    release.touch()
    results = [(process.communicate()[1], process.returncode) for process in processes]
    assert all(code == 0 for _, code in results), results


def test_two_processes_serve_the_same_rows(long: Job) -> None:
    """The commit protocol needs no claims."""
    parts = undisturbed(long)
    end_together(long, ["", ""], NO_CLAIM=1)
    assert long.parts() == parts
    assert not list(long.state.glob("unit-*"))


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    """Returns the first line of standard error that has the words."""
    assert process.stderr
    return next(line for line in process.stderr if words in line)


def events(job: Job, name: str) -> list[dict[str, Any]]:
    """The events of this name, of all runs."""
    found = [json.loads(line) for line in (job.state / "log.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == name]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_second_process_waits_and_computes_nothing_twice(long: Job, is_killed: bool) -> None:
    """It ends when the first one has ended. Where the first one is killed, it makes what is missing."""
    parts = undisturbed(long)
    release = long.folder / "release"
    first = long.start(FAKE_HOLD_AFTER=60, FAKE_RELEASE=release)
    wait_until_held(first)
    wait_for(lambda: sum(event["rows"] for event in events(long, "commit")) == 60, first)
    second = long.start(FAKE_PACE="15 60 0.02 30")
    assert f"process {first.pid} on " in wait_for_line(second, "serves the whole job already")
    if is_killed:
        first.kill()
    else:
        release.touch()
    assert [first.wait(), second.wait()] == [-signal.SIGKILL if is_killed else 0, 0]
    assert long.parts() == parts
    assert sum(event["rows"] for event in events(long, "commit")) == ROWS
    assert len(events(long, "model")) == (2 if is_killed else 1), "a run without rows loads no model"
    assert (long.state / "_SUCCESS.json").exists() and not list(long.state.glob("claim*"))


def test_a_process_that_was_suspended_finds_that_another_one_has_taken_over(long: Job) -> None:
    parts = undisturbed(long)
    releases = [long.folder / "first", long.folder / "second"]
    pace = "0.02 0.5 0.02 30"
    first = long.start(FAKE_PACE=pace, FAKE_HOLD_AFTER=60, FAKE_RELEASE=releases[0])
    wait_until_held(first)
    first.send_signal(signal.SIGSTOP)
    second = long.start(FAKE_PACE=pace, FAKE_HOLD_AFTER=10, FAKE_RELEASE=releases[1])
    wait_for_line(second, f"process {first.pid} on")
    wait_for_line(second, "has not renewed its claim for")
    wait_until_held(second)
    first.send_signal(signal.SIGCONT)
    assert f"process {second.pid} on " in wait_for_line(first, "serves the whole job, as this process has not renewed")
    releases[0].touch()
    assert first.wait() == 75
    releases[1].touch()
    assert second.wait() == 0
    assert long.parts() == parts


def test_shards_in_any_order(long: Job, capsys: pytest.CaptureFixture[str]) -> None:
    parts = undisturbed(long)
    for shard in ("2/3", "0/3"):
        assert long.run("--shard", shard) == 0
        assert "other shards are not" in capsys.readouterr().out
        assert not (long.state / "_SUCCESS.json").exists()
    assert long.run("--shard", "1/3") == 0
    assert long.parts() == parts
    success = json.loads((long.state / "_SUCCESS.json").read_text())
    assert success["rows"] == ROWS
    names = {path.name for path in long.state.iterdir()}
    assert {"log-0-of-3.jsonl", "log-1-of-3.jsonl", "metrics-2-of-3.prom", "report.html"} <= names
    assert long.run() == 0


def test_shards_at_the_same_time(long: Job) -> None:
    parts = undisturbed(long)
    end_together(long, ["0/3", "1/3", "2/3"])
    assert long.parts() == parts
    assert json.loads((long.state / "_SUCCESS.json").read_text())["rows"] == ROWS


def test_a_scheduler_names_the_shard(long: Job) -> None:
    process = long.start("--shard", "auto", RANK=1, WORLD_SIZE=2)
    process.communicate()
    assert process.returncode == 0
    assert sorted(long.parts()) == ["part-00001-of-00005.parquet", "part-00003-of-00005.parquet"]


def test_memory_does_not_grow_with_the_input(job: Job, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compares the peak memory of jobs over 10,000 and 100,000 rows, whose texts differ by 90 MB."""
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
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        peaks[count] = int(output.split("VmHWM:")[1].split()[0]) / 1024
    print(peaks)
    assert peaks[100_000] - peaks[10_000] < 45, peaks
