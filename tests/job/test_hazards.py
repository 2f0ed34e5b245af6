"""What happens to a job's folders and file systems while it runs: a sentence, the right exit code, and a next start."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.job import shard_run
from rwkv_batch.job.output.commit import JobFiles
from rwkv_batch.job.output.storage import LocalStorage

from .conftest import Job
from .prepared import undisturbed


@pytest.fixture
def at_the_second_publish(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Does something to a job's files once, before its second part is published."""

    def install(act: Callable[[], object]) -> None:
        calls: list[int] = []
        original = JobFiles.publish

        def publish(self: Any, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                act()
            return original(self, *arguments)

        monkeypatch.setattr(JobFiles, "publish", publish)

    return install


def test_a_job_file_that_is_removed_while_the_job_runs_is_written_again(
    small: Job, at_the_second_publish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parts = undisturbed(small)
    path = small.state / "job.json"
    before: list[bytes] = []

    def remove() -> None:
        before.append(path.read_bytes())
        path.unlink()

    at_the_second_publish(remove)
    assert small.run() == 0
    assert f"{path} was removed while the job ran, and has been written again" in caplog.text
    assert (small.parts(), json.loads(path.read_bytes())) == (parts, json.loads(before[0]))
    assert small.run() == 0


def test_a_job_file_that_is_removed_before_a_failure_is_written_again(small: Job, at_the_second_publish: Any) -> None:
    parts = undisturbed(small)
    at_the_second_publish(lambda: (small.state / "job.json").unlink() or 1 / 0)
    assert small.run() == 1
    assert small.output.exists()
    assert small.run() == 0
    assert small.parts() == parts


def test_an_output_folder_that_is_removed_while_the_job_runs(
    small: Job, at_the_second_publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = undisturbed(small)
    at_the_second_publish(lambda: shutil.rmtree(small.output))
    assert small.run() == 1
    found = capsys.readouterr()
    assert f"{small.output} cannot be read: 1 part(s) are missing: they were published, and removed" in found.err
    assert "start the same command again" in found.err and "bad row" not in found.out
    assert not (small.state / "_SUCCESS.json").exists()
    assert small.run() == 0
    assert small.parts() == parts


def test_a_state_folder_that_is_removed_while_the_job_runs(
    small: Job, at_the_second_publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = undisturbed(small)
    at_the_second_publish(lambda: shutil.rmtree(small.state))
    assert small.run() == 1
    message = capsys.readouterr().err
    assert "committed rows" in message and "start the" in message and "Traceback" not in message
    assert small.run() == 0
    assert small.parts() == parts


def test_a_folder_that_lists_new_files_late(small: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is listed as it was when the process looked first."""
    parts = undisturbed(small)
    original, seen = os.listdir, dict[str, list[str]]()

    def listdir(folder: Any) -> list[str]:
        return seen.setdefault(str(folder), original(folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        assert small.run() == 0
    assert small.parts() == parts
    assert json.loads((small.state / "report.json").read_text())["complete"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_written_to(
    small: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    parts = undisturbed(small)

    def write(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "_write", write)
        assert small.run() == 1
    message = capsys.readouterr().err
    assert f"rwkv-batch: {small.state}/claim.json cannot be written: {os.strerror(code)}; " in message
    assert "start the same command again" in message and "Traceback" not in message
    assert small.run() == 0
    assert small.parts() == parts


def test_a_file_system_that_has_nothing_but_files(small: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hard links, no sync of folders, no locks, no permissions."""
    parts = undisturbed(small)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    for name in ("link", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr("fcntl.flock", refuse)
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: refuse() if os.path.isdir(f"/proc/self/fd/{descriptor}") else sync(descriptor)
    )
    assert small.run() == 0
    assert small.parts() == parts
    assert shard_run.SUCCESS in os.listdir(small.state)


def test_everything_in_the_state_folder_is_for_its_user_alone(small: Job) -> None:
    assert small.run() == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in [small.state, *small.state.rglob("*")]}
    for name, mode in modes.items():
        assert mode == (0o700 if (small.state / name).is_dir() or name == small.state.name else 0o600), name
    assert {"log.jsonl", "job.json", "report.html", "metrics.prom"} <= set(modes)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in Path(small.output).iterdir()} == {0o666 & ~umask}
