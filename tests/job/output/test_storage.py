"""Local storage: a file appears whole under its name, survives a power cut, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.job.output.storage import LocalStorage

from ..prepared import in_child


@pytest.mark.parametrize("exclusive", [False, True])
def test_bytes_are_safe_before_their_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    """A power cut keeps only what was synced. Killing a process cannot show this, so the calls are recorded."""
    trace: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def fsync(descriptor: int) -> None:
        trace.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real["fsync"](descriptor)

    def name(source: str, target: str) -> None:
        trace.append((source, target))
        real["link" if exclusive else "replace"](source, target)

    storage = LocalStorage(str(tmp_path / "tmp"))
    storage.make_folder(str(tmp_path / "tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "link" if exclusive else "replace", name)
        assert storage.atomic_write(str(tmp_path / "x"), b"data", exclusive=exclusive)
    (first, temporary), (source, target), last = trace
    assert (first, temporary.startswith(f"{tmp_path}/tmp/x.")) == ("sync", True)
    assert (source, target) == (temporary, str(tmp_path / "x"))
    assert last == ("sync", str(tmp_path))


def test_the_name_of_a_new_folder_is_safe_before_anything_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder whose name was lost to a power cut takes its files with it."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    storage = LocalStorage(str(tmp_path / "tmp"))
    storage.make_folder(str(tmp_path / "tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert storage.atomic_write(str(tmp_path / "a" / "b" / "x"), b"data")
    assert [path.removeprefix(f"{tmp_path}") for path in synced[1:]] == ["", "/a", "/a/b"]
    assert synced[0].startswith(f"{tmp_path}/tmp/x.")


def test_no_file_stays_open(tmp_path: Path) -> None:
    def opened() -> list[str]:
        return sorted(os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    storage = LocalStorage(str(tmp_path / "tmp"))
    storage.atomic_write(str(tmp_path / "a" / "x"), b"data")
    before = opened()
    for exclusive in (False, True):
        storage.atomic_write(str(tmp_path / "a" / "x"), b"data", exclusive=exclusive)
        storage.atomic_write(str(tmp_path / "b" / f"y{exclusive}"), b"data", exclusive=exclusive)
    storage.sweep()
    assert opened() == before


def test_only_dead_writers_lose_their_temporary_files(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    alive = storage._create_locked(str(tmp_path / "tmp" / "alive.tmp"))
    assert in_child(lambda: storage._create_locked(str(tmp_path / "tmp" / "dead.tmp")).write(b"x") and 0) == 0
    assert storage.list(str(tmp_path / "tmp")) == ["alive.tmp", "dead.tmp"]
    assert storage.sweep() == 1
    assert storage.list(str(tmp_path / "tmp")) == ["alive.tmp"]
    alive.close()
    assert storage.sweep() == 1


def test_a_writer_that_was_swept_before_it_held_its_lock_starts_again(tmp_path: Path, monkeypatch: Any) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    real, swept = fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        if not swept and operation == fcntl.LOCK_EX:
            swept.append(LocalStorage(storage.temporary_folder).sweep())
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert storage.atomic_write(str(tmp_path / "x"), b"data")
    assert (swept, (tmp_path / "x").read_bytes()) == ([1], b"data")


def test_an_exclusive_write_keeps_what_is_there(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    assert storage.atomic_write(str(tmp_path / "a" / "b"), b"one", exclusive=True)
    assert not storage.atomic_write(str(tmp_path / "a" / "b"), b"two", exclusive=True)
    assert (tmp_path / "a" / "b").read_bytes() == b"one"
    assert storage.atomic_write(str(tmp_path / "a" / "b"), b"three")
    storage.remove(str(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
