"""The storage in object stores of other makes than moto's: another S3 server, and emulators of other stores.

`npm install --global azurite` installs the latter.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes.emulators import Emulator, azurite, gcs, rclone

from job.conftest import Job
from rwkv_batch.job.output import object_storage
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.job.output.storage import StorageError
from rwkv_batch.models.files import bucket
from rwkv_batch.models.files.remote import download

NAMES = ("part-00000-of-00001.parquet", "a b.json", "ü%20+&=.seg", "[x]*.txt")


@pytest.fixture(scope="module", params=[rclone, azurite, gcs], ids=lambda start: start.__name__)
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with request.param(tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture
def folder(emulator: Emulator, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty folder."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    return f"{emulator.url}/{request.node.originalname}"


def content(path: str) -> bytes:
    with ObjectStorage().open(path) as file:
        return file.read()


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_written_listed_read_moved_and_removed(folder: str, name: str) -> None:
    storage = ObjectStorage()
    path, target = f"{folder}/b c/{name}", f"{folder}/d/{name}"
    assert storage.list(f"{folder}/b c") == []
    storage.atomic_write(path, b"one")
    storage.atomic_write(path, b"two")
    assert (ObjectStorage().list(f"{folder}/b c"), ObjectStorage().list(folder)) == ([name], ["b c"])
    assert content(path) == b"two"
    storage.move(path, target)
    assert (ObjectStorage().list(f"{folder}/b c"), content(target)) == ([], b"two")
    with pytest.raises(FileNotFoundError):
        storage.open(path)
    storage.remove(target)
    storage.remove(target)
    assert ObjectStorage().list(f"{folder}/d") == []
    storage.atomic_write(path, b"")
    assert content(path) == b""
    storage.remove(path)


def test_an_object_is_created_once(folder: str, emulator: Emulator) -> None:
    storage = ObjectStorage()
    assert storage.probe(folder) == emulator.creates
    assert storage.list(folder) == []
    assert storage.atomic_write(f"{folder}/x", b"one", exclusive=True)
    assert not storage.atomic_write(f"{folder}/x", b"two", exclusive=True)
    assert content(f"{folder}/x") == b"one"
    if emulator.creates:
        barrier = threading.Barrier(8)

        def create(index: int) -> bool:
            mine = ObjectStorage()
            barrier.wait()
            return mine.atomic_write(f"{folder}/y", b"%d" % index, exclusive=True)

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(create, range(8)))
        assert [index for index, is_mine in enumerate(told) if is_mine] == [int(content(f"{folder}/y"))]


def test_a_large_object_is_written_in_pieces_and_read_in_ranges(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "ONE_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(object_storage, "PIECE_BYTES", 5 << 20)
    data = random.randbytes(13 << 20)
    ObjectStorage().atomic_write(f"{folder}/x", data)
    assert content(f"{folder}/x") == data
    with ObjectStorage().open(f"{folder}/x") as file:
        file.seek(7 << 20)
        assert file.read(100) == data[7 << 20 : (7 << 20) + 100]
        ObjectStorage().atomic_write(f"{folder}/x", data[::-1])
        file.seek(0)
        with pytest.raises(StorageError, match="another process has replaced it meanwhile"):
            file.read()


def test_a_job_equals_one_on_a_disk(small: Job, folder: str) -> None:
    assert small.run() == 0
    expected = small.parts()
    url = f"{folder}/eval"
    small.set(output__path=url)
    assert small.run() == 0 and parts(url) == expected
    name = sorted(expected)[0]
    ObjectStorage().atomic_write(f"{url}/{name}", expected[name][:-50])
    assert small.run() == 0 and parts(url) == expected
    state = ObjectStorage().list(f"{url}.rwkv_batch")
    assert {"_SUCCESS.json", "job.json", "damaged"} < {*state} and not any(name.startswith("unit-") for name in state)


def parts(url: str) -> dict[str, bytes]:
    return {name: content(f"{url}/{name}") for name in ObjectStorage().list(url)}


def test_models_are_fetched(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bucket, "PIECE_BYTES", 1 << 20)
    data: dict[str, Any] = {"config.json": b"{}", "model.safetensors": random.randbytes(5 << 20)}
    for name, content_of in data.items():
        ObjectStorage().atomic_write(f"{folder}/m/{name}", content_of)
    assert download(f"{folder}/m/model.safetensors").read_bytes() == data["model.safetensors"]
    assert {path.name: path.read_bytes() for path in download(f"{folder}/m").iterdir()} == data
