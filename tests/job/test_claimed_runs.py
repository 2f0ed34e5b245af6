"""Jobs of one process that meet: the same job in two threads, other jobs, and one that another process takes over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from job import fake_llm
from rwkv_batch import Stopped, run_job
from rwkv_batch.job import claiming
from rwkv_batch.job.claim import Claim, Machine
from rwkv_batch.job.claiming import Pace
from rwkv_batch.job.output.storage import LocalStorage

from .conftest import Job
from .test_claiming import RARELY, wait_for


@contextmanager
def held(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block at whose end the model goes on, which has stopped after three rows."""
    release = job.folder / "release"
    monkeypatch.setenv("FAKE_HOLD_AFTER", "3")
    monkeypatch.setenv("FAKE_RELEASE", str(release))
    try:
        yield
    finally:
        release.touch()


def take_over(job: Job, claim: Claim) -> None:
    """Writes another run's claim as that run does: in place of the claim that it has read, and no newer one."""
    storage, path = LocalStorage(str(job.state / "tmp")), job.state / "claim.json"
    while not storage.replace(str(path), claim.encoded(), path.read_bytes()):
        pass


def test_the_same_job_in_two_threads_is_served_once(
    job: Job, served: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "PACE", Pace(poll=0.005))
    with ThreadPoolExecutor(2) as pool:
        with held(job, monkeypatch):
            runs = [pool.submit(run_job, job.settings) for _ in range(2)]
            wait_for(lambda: "serves the whole job already" in caplog.text)
        assert all(run.result().is_complete for run in runs)
    assert sorted(served) == list(range(30)) and fake_llm.LLM.loaded == 1


def test_another_job_of_the_same_process_does_not_wait(
    job: Job, served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool, held(job, monkeypatch):
        first = pool.submit(run_job, job.settings)
        wait_for(lambda: len(served) == 3)
        (job.folder / "release").touch()
        assert run_job(job.settings, {"output.path": str(job.folder / "other")}).is_complete
        assert run_job(job.settings, limit=4).rows == 4
        assert first.result().is_complete


def test_a_run_that_has_lost_its_claim_commits_what_is_finished(
    job: Job, served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread than the main thread, which no signal reaches."""
    monkeypatch.setattr(claiming, "PACE", Pace(beat=0.005, poll=0.005))
    job.set(output__flush_seconds=RARELY)
    with ThreadPoolExecutor(1) as pool:
        with held(job, monkeypatch):
            run = pool.submit(run_job, job.settings)
            wait_for(lambda: len(served) == 3)
            take_over(job, replace(Machine().claim("x"), host="there"))
            wait_for(lambda: not any(thread.name == "rwkv_batch-claim" for thread in threading.enumerate()))
        with pytest.raises(Stopped, match="on there"):
            run.result()
    assert 3 <= len(served) <= 4 and list(job.state.glob("unit-*/*.seg"))
    assert '"event": "stopped"' in (job.state / "log.jsonl").read_text()


def test_the_log_and_the_claim_name_the_same_run(job: Job, monkeypatch: pytest.MonkeyPatch, served: list[int]) -> None:
    with ThreadPoolExecutor(1) as pool, held(job, monkeypatch):
        run = pool.submit(run_job, job.settings)
        wait_for(lambda: len(served) == 3)
        claim = Claim.of((job.state / "claim.json").read_bytes())
        (job.folder / "release").touch()
        run.result()
    assert f'"run": "{claim.run}"' in (job.state / "log.jsonl").read_text()
    assert not (job.state / "claim.json").exists()
