"""The content of a claim file, what this machine knows of the process that wrote it, and the claims of a job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.job.claim import Claim, Machine, read_claims
from rwkv_batch.job.output.storage import LocalStorage
from rwkv_batch.job.plan import Shard

WAITS = [sys.executable, "-c", "input()"]


def test_a_claim_is_read_as_it_was_written() -> None:
    claim = Machine().claim("1a2b3c4d")
    assert Claim.of(claim.encoded()) == claim
    assert (claim.pid, claim.run, claim.beat) == (os.getpid(), "1a2b3c4d", 0)
    renewal = claim.renewal()
    assert replace(renewal, beat=0, renewed=claim.renewed) == claim and renewal.beat == 1


def test_a_claim_of_a_later_version_may_say_more() -> None:
    claim = Machine().claim("1a2b3c4d")
    assert Claim.of(json.dumps({**json.loads(claim.encoded()), "more": [1]}).encode()) == claim


DAMAGED = {
    "empty": b"",
    "half": Machine().claim("a").encoded()[:-9],
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"7",
    "deep": b"[" * 100_000,
    "another file": b'{"fingerprint": "x"}',
    "a text for a number": Machine().claim("a").encoded().replace(b'"beat": 0', b'"beat": "0"'),
    "true for a number": Machine().claim("a").encoded().replace(b'"beat": 0', b'"beat": true'),
    "a number for a text": Machine().claim("a").encoded().replace(b'"run": "a"', b'"run": 1'),
    "no process": Machine().claim("a").encoded().replace(b'"pid": ', b'"pid": -'),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_or_foreign_file_is_no_claim(content: bytes) -> None:
    assert Claim.of(content) is None


def test_a_process_has_ended_when_it_was_killed_and_not_when_it_is_suspended() -> None:
    machine = Machine()
    process = subprocess.Popen(WAITS, stdin=subprocess.PIPE)
    claim = replace(machine.claim("a"), pid=process.pid, started=machine.started(process.pid) or -1)
    try:
        assert claim.started > 0 and not machine.has_ended(claim)
        process.send_signal(signal.SIGSTOP)
        assert not machine.has_ended(claim)
        later = replace(claim, started=claim.started - 1)
        assert machine.has_ended(later), "another process has the number now"
        assert not machine.has_ended(replace(claim, started=0)), "it is not known when that process started"
    finally:
        process.kill()
    while not machine.has_ended(claim):  # before its parent has asked how it ended
        time.sleep(0.005)
    assert os.path.exists(f"/proc/{process.pid}")
    process.communicate()
    assert machine.has_ended(claim)


def test_another_users_process_lives() -> None:
    machine = Machine()
    if os.geteuid() != 0:
        assert not machine.has_ended(replace(machine.claim("a"), pid=1, started=machine.started(1) or 0))
    assert machine.started(1) is not None


@pytest.mark.parametrize("elsewhere", [{"host": "there"}, {"boot": "earlier"}, {"namespace": "pid:[2]"}])
def test_nothing_is_known_of_processes_elsewhere(elsewhere: dict[str, Any]) -> None:
    machine = Machine()
    gone = replace(machine.claim("a"), pid=2**22 + 1)
    assert machine.has_ended(gone)
    assert not machine.has_ended(replace(gone, **elsewhere))


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are known by their numbers alone."""

    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "readlink", refuse)
    machine = Machine()
    claim = machine.claim("a")
    assert (machine.boot, machine.namespace, claim.started) == ("", "", 0)
    assert not machine.has_ended(claim)
    assert machine.has_ended(replace(claim, pid=2**22 + 1))


def test_the_claims_of_a_job_are_found(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    claim = Machine().claim("a")
    for name in ("claim.json", "claim-3-of-8.json", "claim-8-of-8.json", "claim-x.json", "claim.json.old", "job.json"):
        (tmp_path / name).write_bytes(claim.encoded())
    (tmp_path / "claim-1-of-8.json").write_bytes(b"")
    assert dict(read_claims(storage, str(tmp_path))) == {Shard(): claim, Shard(3, 8): claim}
    assert dict(read_claims(storage, str(tmp_path / "nowhere"))) == {}
