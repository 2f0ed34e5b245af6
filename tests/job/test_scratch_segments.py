"""Jobs in an object store whose segments lie on the machine's disk: what a kill loses, and what a lost machine."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes.object_store import Bucket

from job import fake_llm
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.folders import Folders
from rwkv_batch.job.load import load_job

from .conftest import Job

ROWS, PART = 12, 4
HELD = 3
"""Rows that are committed, and in no part, when the job ends early."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rwkv_batch" / "segments"


@pytest.fixture
def scratch(job: Job, bucket: Bucket, cache: Path) -> Job:
    """Three parts, a segment for each batch of finished rows."""
    job.input(id=list(range(ROWS)), prompt=[f"prompt {i}" for i in range(ROWS)])
    return job.set(
        output__rows_per_part=PART, output__path=f"{bucket.url}/out", output__flush_seconds=0, run__segments="scratch"
    )


def segments(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.seg"))


def undisturbed(job: Job) -> dict[str, bytes]:
    """The parts of the same job on a local disk, where the setting changes nothing."""
    url = job.settings["output"]["path"]
    assert job.set(output__path=str(job.folder / "undisturbed")).run() == 0
    parts = job.parts()
    job.set(output__path=url)
    return parts


def end_after_some_rows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves one of three parts, and segments with three rows of the others."""

    def fail() -> None:
        raise RuntimeError("the engine fails")

    assert job.run("--shard", "0/3") == 0
    with monkeypatch.context() as patch:
        patch.setattr(fake_llm, "hold", fail)
        patch.setenv("FAKE_HOLD_AFTER", str(HELD))
        assert job.run() == 1


def served_by(job: Job, bucket: Bucket) -> int:
    """Finishes the job; returns how many rows that served."""
    before = set(bucket.objects("out.rwkv_batch"))
    assert job.run() == 0
    logs = [
        data
        for name, data in bucket.objects("out.rwkv_batch").items()
        if name.startswith("log.") and name not in before
    ]
    ends = [json.loads(line) for data in logs for line in data.splitlines()]
    return sum(event.get("rows", 0) for event in ends if event["event"] == "commit")


def test_nothing_small_is_written_to_the_store(scratch: Job, bucket: Bucket, cache: Path) -> None:
    expected = undisturbed(scratch)
    assert not cache.exists(), "a job on a disk keeps its segments in its state folder"
    assert scratch.run() == 0
    assert bucket.objects("out") == expected
    assert not any(".seg" in request or "/unit-" in request.split("?")[0] for request in bucket.proxy.requests)
    assert not segments(cache), "they are removed when their part is there"
    (folder,) = cache.iterdir()
    logged = b"".join(data for name, data in bucket.objects("out.rwkv_batch").items() if name.startswith("log."))
    (start,) = [event for event in map(json.loads, logged.splitlines()) if event["event"] == "start"]
    assert (start["scratch"], start["config"]["run"]["segments"]) == (str(folder), "scratch")


def test_a_dry_run_names_the_folder_and_makes_none(
    scratch: Job, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scratch.run("--dry-run") == 0
    assert f"segments  {cache}/out.rwkv_batch-" in capsys.readouterr().out and not cache.exists()


def test_a_killed_job_goes_on_and_serves_no_committed_row_again(scratch: Job, bucket: Bucket, cache: Path) -> None:
    expected = undisturbed(scratch)
    process = scratch.start(FAKE_HOLD_AFTER=HELD)
    assert process.stdout.readline() == "held\n"
    while sum(pq.read_table(path).num_rows for path in segments(cache)) < HELD:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not any(".seg" in name for name in bucket.objects())
    assert served_by(scratch, bucket) == ROWS - HELD
    assert bucket.objects("out") == expected and not segments(cache)


@pytest.mark.parametrize("then", ["store", "another machine"])
def test_a_job_goes_on_elsewhere(
    scratch: Job, bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """With the other setting no row is served again; on another machine, the rows that no part has are."""
    expected = undisturbed(scratch)
    end_after_some_rows(scratch, monkeypatch)
    assert segments(cache) and not any(".seg" in name for name in bucket.objects())
    if then == "another machine":
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "another"))
    else:
        scratch.set(run__segments="store")
    assert served_by(scratch, bucket) == (ROWS - PART if then == "another machine" else ROWS - PART - HELD)
    assert bucket.objects("out") == expected and not any(".seg" in name for name in bucket.objects())
    if then == "another machine":
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
        loaded = fake_llm.LLM.loaded
        assert scratch.run() == 0 and fake_llm.LLM.loaded == loaded, "everything is there"
        assert bucket.objects("out") == expected
    assert not segments(cache)


def test_segments_in_the_store_are_found_with_a_scratch_folder(
    scratch: Job, bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(scratch)
    end_after_some_rows(scratch.set(run__segments="store"), monkeypatch)
    assert not cache.exists()
    assert served_by(scratch.set(run__segments="scratch"), bucket) == ROWS - PART - HELD
    assert bucket.objects("out") == expected
    assert not segments(cache) and not any(".seg" in name for name in bucket.objects())


def test_to_start_over_the_scratch_folder_is_removed_too(
    scratch: Job, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scratch.run() == 0
    assert scratch.set(sampling__max_tokens=9).run() == 4
    (folder,) = cache.iterdir()
    assert f"out.rwkv_batch/, and: rm -r {folder}" in capsys.readouterr().err


def test_workers_on_several_machines_share_their_segments(scratch: Job) -> None:
    job = load_job(scratch.set(run__backend="ray").write(), (), None)
    with pytest.raises(
        ConfigurationError, match=r"run\.segments: got 'scratch' with run\.backend 'ray', expected 'store'"
    ):
        Folders.of(job)


def test_a_cache_folder_that_cannot_be_written_to_is_refused(
    scratch: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    assert scratch.run() == 2
    assert "run.segments: scratch (its place follows XDG_CACHE_HOME): cannot write to" in capsys.readouterr().err
    assert fake_llm.LLM.loaded == 0
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert scratch.run() == 2
    assert "set XDG_CACHE_HOME to a folder on a local disk" in capsys.readouterr().err
