"""Local storage: a file appears whole under its name, survives a power cut, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.job.output.storage import ADVICE, LocalStorage, StorageError

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


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_state_folder_is_for_its_user_alone_and_the_output_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    state, output = tmp_path / "out.rwkv_batch", tmp_path / "out"
    storage = LocalStorage(str(state / "tmp"))
    before = os.umask(umask)
    try:
        storage.atomic_write(str(state / "unit-00000" / "x.seg"), b"data")
        storage.atomic_write(str(state / "job.json"), b"data", exclusive=True)
        storage.atomic_write(str(output / "part"), b"data")
    finally:
        os.umask(before)
    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert found == {
        "out.rwkv_batch": 0o700,
        "out.rwkv_batch/tmp": 0o700,
        "out.rwkv_batch/unit-00000": 0o700,
        "out.rwkv_batch/unit-00000/x.seg": 0o600,
        "out.rwkv_batch/job.json": 0o600,
        "out": 0o777 & ~umask,
        "out/part": 0o666 & ~umask,
    }


def test_a_state_folder_that_is_there_keeps_its_permissions_and_passes_them_on(tmp_path: Path) -> None:
    """So that a group can share a job."""
    state = tmp_path / "out.rwkv_batch"
    state.mkdir()
    state.chmod(0o2770)
    LocalStorage(str(state / "tmp")).atomic_write(str(state / "unit-00000" / "x.seg"), b"data")
    assert (state / "unit-00000").stat().st_mode & 0o7777 == 0o2770
    assert (state / "unit-00000" / "x.seg").stat().st_mode & 0o777 == 0o660
    assert state.stat().st_mode & 0o7777 == 0o2770


def failing(code: int, *, only: Callable[..., bool] = lambda *_: True, instead: Any = None) -> Callable[..., Any]:
    """A system call that fails, for the arguments that `only` accepts."""

    def call(*arguments: Any, **options: Any) -> Any:
        if only(*arguments):
            raise OSError(code, os.strerror(code))
        return instead(*arguments, **options)

    return call


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(os, "link", failing(code))
    storage = LocalStorage(str(tmp_path / "tmp"))
    for name in ("a", "b"):
        assert storage.atomic_write(str(tmp_path / name), b"one", exclusive=True)
        assert not storage.atomic_write(str(tmp_path / name), b"two", exclusive=True)
        assert (tmp_path / name).read_bytes() == b"one"
    assert caplog.text.count("no hard links") == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(errno.EIO))
        with pytest.raises(StorageError):
            storage.atomic_write(str(tmp_path / "c"), b"one", exclusive=True)
    assert storage.atomic_write(str(tmp_path / "c"), b"two", exclusive=True)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def is_folder(descriptor: int) -> bool:
        return stat.S_ISDIR(os.fstat(descriptor).st_mode)

    monkeypatch.setattr(os, "fsync", failing(code, only=is_folder, instead=os.fsync))
    storage = LocalStorage(str(tmp_path / "tmp"))
    for name in ("a", "b"):
        assert storage.atomic_write(str(tmp_path / name), b"one")
    assert caplog.text.count("no sync of folders") == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(code))
    storage = LocalStorage(str(tmp_path / "tmp"))
    assert storage.atomic_write(str(tmp_path / "a"), b"one")
    (tmp_path / "tmp" / "of another process.tmp").touch()
    assert storage.sweep() == 0


def test_a_file_system_without_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, failing(errno.EPERM))
    assert LocalStorage(str(tmp_path / "state" / "tmp")).atomic_write(str(tmp_path / "state" / "a"), b"one")


def test_what_was_written_just_now_is_found_although_it_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on NFS may list a new file half a minute late."""
    (tmp_path / "old").touch()
    storage = LocalStorage(str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "listdir", lambda folder: ["old"])
    for name in ("a", "b", "c"):
        storage.atomic_write(str(tmp_path / name), b"data")
    storage.remove(str(tmp_path / "b"))
    (tmp_path / "c").unlink()  # by another process
    assert storage.list(str(tmp_path)) == ["a", "old"]


@pytest.mark.parametrize("code", sorted(ADVICE))
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_an_error_is_a_sentence_with_the_path_and_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    monkeypatch.setattr(os, call, failing(code))
    path = tmp_path / "state" / "x" if call == "mkdir" else tmp_path / "x"
    with pytest.raises(StorageError) as caught:
        LocalStorage(str(path.parent / "tmp")).atomic_write(str(path), b"data")
    folder = tmp_path / "state"
    what = f"{folder} cannot be made" if call == "mkdir" else f"{path} cannot be written"
    assert str(caught.value) == f"{what}: {os.strerror(code)}; {ADVICE[code]}"
    assert caught.value.errno == code
    assert not path.exists()


def test_an_error_of_an_unknown_kind_has_its_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", failing(errno.ENXIO))
    monkeypatch.setattr(os, "unlink", failing(errno.ENXIO))
    storage = LocalStorage(str(tmp_path / "tmp"))
    with pytest.raises(StorageError, match=f"^{tmp_path} cannot be read: {os.strerror(errno.ENXIO)}$"):
        storage.list(str(tmp_path))
    with pytest.raises(StorageError, match=f"^{tmp_path}/x cannot be removed: {os.strerror(errno.ENXIO)}$"):
        storage.remove(str(tmp_path / "x"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError("a wrapped error")])
def test_an_error_comes_from_a_worker_as_it_is(error: OSError) -> None:
    sent = StorageError("/out/x", "written", error)
    found = pickle.loads(pickle.dumps(sent))
    assert type(found) is StorageError
    assert (str(found), found.errno, found.strerror, found.filename) == (
        str(sent),
        error.errno,
        error.strerror,
        "/out/x",
    )


def test_a_file_that_is_missing_stays_a_file_that_is_missing(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "tmp"))
    with pytest.raises(FileNotFoundError):
        storage.open(str(tmp_path / "x"))
    assert storage.list(str(tmp_path / "no folder")) == []
