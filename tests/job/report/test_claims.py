"""How runs ended whose logs do not say it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from rwkv_batch.job.claim import Claim, Machine
from rwkv_batch.job.plan import Shard
from rwkv_batch.job.report.claims import ClaimWatch, settle
from rwkv_batch.job.report.history import UNKNOWN

from ..conftest import Job


def run(name: str, outcome: str = UNKNOWN, **more: Any) -> dict[str, Any]:
    return {"run": name, "outcome": outcome, **more}


@pytest.fixture
def alive() -> Claim:
    """A claim of this process."""
    return Machine().claim("b")


def test_a_run_without_an_end_is_alive_only_if_it_holds_a_claim(alive: Claim) -> None:
    """The later run waited until the earlier one had ended."""
    runs = [run("a"), run("b"), run("c", "finished"), run("d", "ValueError: no")]
    found = settle(runs, {Shard(): alive})
    assert [one["outcome"] for one in found] == ["killed", "running", "finished", "ValueError: no"]
    assert [one["outcome"] for one in settle(runs, {})] == ["killed", "killed", "finished", "ValueError: no"]


def test_a_claim_of_a_process_that_is_gone_or_silent(alive: Claim) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    (ended,) = settle([run("b")], {Shard(): replace(alive, pid=process.pid)})
    elsewhere = replace(alive, host="elsewhere", renewed="2020-01-31 12:00:00 UTC")
    (silent,) = settle([run("b")], {Shard(): elsewhere})
    assert (ended["outcome"], silent["outcome"]) == ("killed", "suspended, or its machine is gone")


def test_workers_end_with_their_run(alive: Claim) -> None:
    workers = {0: run("", "finished"), 1: run("")}
    for name, outcome, expected in (("a", UNKNOWN, "killed"), ("b", UNKNOWN, "running")):
        (found,) = settle([run(name, outcome, workers=workers)], {Shard(): alive})
        assert [worker["outcome"] for worker in found["workers"].values()] == ["finished", expected]
    (found,) = settle([run("a", "RuntimeError: x", workers=workers)], {})
    assert found["workers"][1]["outcome"] == "ended with its run"


def test_a_claim_that_is_renewed_is_alive_whatever_its_clock_says(alive: Claim) -> None:
    watch = ClaimWatch()
    old = replace(alive, host="elsewhere", renewed="2020-01-31 12:00:00 UTC")
    assert [watch.state(one, now=2e9) for one in (old, old.renewal())] == ["stale", "alive"]


def test_the_report_of_a_job_that_was_killed_and_started_again(job: Job) -> None:
    process = job.set(output__flush_seconds=0).input(prompt=["a"] * 30).start(FAKE_HOLD_AFTER=15)
    assert process.stdout and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    assert job.run() == 0
    report = json.loads((job.state / "report.json").read_text())
    assert [one["outcome"] for one in report["runs"]] == ["killed", "finished"]
