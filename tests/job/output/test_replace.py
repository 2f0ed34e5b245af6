"""A file is replaced if it is still what it was: of several processes that replace it at once, one does."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes.fault_proxy import Request, schedule
from fakes.object_store import Bucket

from rwkv_batch.job.output import object_storage
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.job.output.storage import LocalStorage, StorageError
from rwkv_batch.object_stores import client


@pytest.fixture
def storage(bucket: Bucket) -> ObjectStorage:
    return ObjectStorage()


def once(fault: str) -> Any:
    """Lets the first PUT meet a fault."""
    left = [fault]

    def act(request: Request) -> str | None:
        return left.pop() if left and request.method == "PUT" else None

    return act


def test_a_file_is_replaced_if_it_is_what_it_was(tmp_path: Path) -> None:
    storage, path = LocalStorage(str(tmp_path / "tmp")), tmp_path / "a" / "x"
    assert not storage.replace(str(path), b"new", b"") and not path.parent.exists()
    storage.atomic_write(str(path), b"old")
    assert not storage.replace(str(path), b"new", b"other") and path.read_bytes() == b"old"
    assert storage.replace(str(path), b"new", b"old") and path.read_bytes() == b"new"
    assert not storage.replace(str(path), b"newer", b"old") and path.read_bytes() == b"new"


def test_of_many_who_replace_a_file_at_once_one_does(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for _ in range(20):
        path.write_bytes(b"old")
        barrier = threading.Barrier(8)

        def replace(index: int, barrier: threading.Barrier = barrier) -> bool:
            storage = LocalStorage(str(tmp_path / "tmp"))
            barrier.wait()
            return storage.replace(str(path), b"%d" % index, b"old")

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(replace, range(8)))
        assert [index for index, is_mine in enumerate(told) if is_mine] == [int(path.read_bytes())]


@pytest.mark.parametrize("moment", ["before the lock", "while it is locked"])
def test_a_file_that_another_process_replaces_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The lock is that of a file, and not of its name."""
    storage, path, real, calls = LocalStorage(str(tmp_path / "tmp")), tmp_path / "x", fcntl.flock, []
    path.write_bytes(b"old")

    def flock(file: Any, operation: int) -> None:
        if not calls:
            calls.append(operation)
            if moment == "before the lock":
                (tmp_path / "y").write_bytes(b"old")
                os.replace(tmp_path / "y", path)
            else:
                held.append(open(path, "rb"))  # noqa: SIM115
                real(held[0], fcntl.LOCK_EX)
        real(file, operation)

    held: list[Any] = []
    monkeypatch.setattr(fcntl, "flock", flock)
    assert not storage.replace(str(path), b"new", b"old")
    assert path.read_bytes() == b"old"
    for file in held:
        file.close()
    assert storage.replace(str(path), b"new", b"old")


def test_a_file_system_without_locks_replaces_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    storage, path = LocalStorage(str(tmp_path / "tmp")), tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert storage.replace(str(path), b"new", b"old") and path.read_bytes() == b"new"


FAULTS = [None, "500", "503", "409", "drop", "done drop", "done 500", "cut", "twice"]


@pytest.mark.parametrize("fault", FAULTS)
def test_who_replaces_an_object_is_told_so(storage: ObjectStorage, bucket: Bucket, fault: str | None) -> None:
    """Also where the request that replaced it reported a failure."""
    path = f"{bucket.url}/a/x"
    storage.atomic_write(path, b"old")
    bucket.proxy.schedule = once(fault) if fault else bucket.proxy.schedule
    assert storage.replace(path, b"mine", b"old") is True
    assert bucket.objects() == {"a/x": b"mine"}


@pytest.mark.parametrize("fault", [None, "500", "409", "done drop"])
def test_an_object_that_is_not_what_it_was_is_not_replaced(
    storage: ObjectStorage, bucket: Bucket, fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{bucket.url}/a/x"
    assert storage.replace(path, b"mine", b"old") is False and bucket.objects() == {}
    for other in (b"other", b""):
        storage.atomic_write(path, other)
        assert storage.replace(path, b"mine", b"old") is False
    read = object_storage.content_and_tags
    storage.atomic_write(path, b"old")

    def read_early(store: Any, key: str) -> Any:
        """Another process replaces the object between the reading and the writing."""
        found = read(store, key)
        ObjectStorage().atomic_write(path, b"other")
        bucket.proxy.schedule = once(fault) if fault else bucket.proxy.schedule
        monkeypatch.setattr(object_storage, "content_and_tags", read)
        return found

    monkeypatch.setattr(object_storage, "content_and_tags", read_early)
    assert storage.replace(path, b"mine", b"old") is False
    assert bucket.objects() == {"a/x": b"other"}


def test_of_many_who_replace_an_object_at_once_one_does(bucket: Bucket) -> None:
    def replace(index: int) -> bool:
        storage = ObjectStorage()
        barrier.wait()
        return storage.replace(f"{bucket.url}/a/x", b"%d" % index, b"old")

    for trial in range(3):
        ObjectStorage().atomic_write(f"{bucket.url}/a/x", b"old")
        bucket.proxy.schedule = schedule(trial)
        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(replace, range(8)))
        bucket.proxy.schedule = lambda _: None
        winner = bucket.objects()["a/x"]
        assert [index for index, is_mine in enumerate(told) if is_mine] == [int(winner)]


def test_a_store_without_conditions_replaces_objects(storage: ObjectStorage, bucket: Bucket) -> None:
    storage.atomic_write(f"{bucket.url}/a/x", b"old")
    bucket.proxy.schedule = lambda asked: "501" if "if-match" in asked.headers and asked.method == "PUT" else None
    assert storage.replace(f"{bucket.url}/a/x", b"mine", b"old") is True
    assert bucket.objects() == {"a/x": b"mine"}


def test_an_object_that_may_not_be_replaced(storage: ObjectStorage, bucket: Bucket) -> None:
    storage.atomic_write(f"{bucket.url}/a/x", b"old")
    bucket.proxy.schedule = lambda asked: "403" if asked.method == "PUT" else None
    with pytest.raises(StorageError, match="cannot be written: AccessDenied"):
        storage.replace(f"{bucket.url}/a/x", b"mine", b"old")


def test_an_object_that_cannot_be_read_is_not_asked_for_without_end(storage: ObjectStorage, bucket: Bucket) -> None:
    storage.atomic_write(f"{bucket.url}/a/x", b"old")
    bucket.proxy.requests.clear()
    bucket.proxy.schedule = lambda _: "503"
    with pytest.raises(StorageError, match="cannot be read: SlowDown"):
        storage.replace(f"{bucket.url}/a/x", b"mine", b"old")
    assert len(bucket.proxy.requests) == object_storage.TRIES * (1 + client.RETRIES["max_retries"])
