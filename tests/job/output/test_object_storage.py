"""The storage in object stores, over HTTP with a real S3 server behind a proxy that makes faults."""

from __future__ import annotations

import errno
import io
import logging
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.fault_proxy import Request, schedule
from fakes.object_store import SECRET, Bucket
from fakes.s3_server import request

from rwkv_batch.errors import MissingExtraError
from rwkv_batch.job.output import object_storage
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.job.output.storage import StorageError

NAMES = ("part-00000-of-00001.parquet", "a b.json", "ü%20+&=.seg", "[x]*.txt")


@pytest.fixture
def storage(bucket: Bucket) -> ObjectStorage:
    return ObjectStorage()


def once(fault: str, *, method: str = "PUT") -> Any:
    """Lets the first request with a method meet a fault."""
    left = [fault]

    def act(request: Request) -> str | None:
        return left.pop() if left and request.method == method else None

    return act


def content(storage: ObjectStorage, path: str) -> bytes:
    with storage.open(path) as file:
        return file.read()


@pytest.mark.parametrize("name", NAMES)
def test_an_object_is_written_listed_read_replaced_moved_and_removed(
    storage: ObjectStorage, bucket: Bucket, name: str
) -> None:
    folder = f"{bucket.url}/a/b c"
    path, target = f"{folder}/{name}", f"{bucket.url}/d/{name}"
    assert storage.list(folder) == []
    assert storage.atomic_write(path, b"one")
    assert storage.atomic_write(path, pa.py_buffer(b"two"))
    assert (storage.list(folder), storage.list(f"{bucket.url}/a")) == ([name], ["b c"])
    assert content(storage, path) == b"two"
    storage.move(path, target)
    assert (storage.list(folder), content(storage, target)) == ([], b"two")
    with pytest.raises(FileNotFoundError):
        storage.open(path)
    with pytest.raises(FileNotFoundError):
        storage.move(path, target)
    storage.remove(target)
    storage.remove(target)
    assert bucket.objects() == {}


def test_an_object_goes_to_another_bucket(storage: ObjectStorage, bucket: Bucket, make_bucket: Any) -> None:
    other = make_bucket()
    storage.atomic_write(f"{bucket.url}/a/x", b"one")
    storage.move(f"{bucket.url}/a/x", f"{other.url}/b/x")
    assert (bucket.objects(), other.objects()) == ({}, {"b/x": b"one"})


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_any_bytes_of_an_object_can_be_read(
    storage: ObjectStorage, bucket: Bucket, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "FIRST_BYTES", 1000)
    data = random.randbytes(size)
    path = f"{bucket.url}/a/x"
    storage.atomic_write(path, data)
    assert content(storage, path) == data
    with storage.open(path) as file:
        wanted = io.BytesIO(data)
        for _ in range(30):
            position, length = random.randint(0, size + 10), random.choice([0, 1, 7, 1500, -1])
            assert file.seek(position) == wanted.seek(position)
            assert file.read(length) == wanted.read(length)
            assert file.tell() == wanted.tell()
        assert file.seek(0, os.SEEK_END) == size


def test_of_a_large_part_only_what_is_asked_for_is_read(storage: ObjectStorage, bucket: Bucket) -> None:
    table = pa.table({"a": list(range(2_000_000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100_000, compression="none", use_dictionary=False)
    path = f"{bucket.url}/a/x.parquet"
    storage.atomic_write(path, sink.getvalue())
    bucket.proxy.requests.clear()
    with storage.open(path) as file:
        assert pq.ParquetFile(file).metadata.num_rows == 2_000_000
    assert len(bucket.proxy.requests) <= 3
    with storage.open(path) as file:
        assert pq.read_table(file) == table
    bucket.proxy.requests.clear()
    assert content(storage, path) == sink.getvalue()
    assert len(bucket.proxy.requests) == 2


@pytest.mark.parametrize("fault", ["500", "503", "409", "drop", "done drop", "done 500", "cut", "twice", "delay"])
def test_a_failed_write_is_made_again(storage: ObjectStorage, bucket: Bucket, fault: str) -> None:
    bucket.proxy.schedule = once(fault)
    assert storage.atomic_write(f"{bucket.url}/a/x", b"content" * 1000)
    assert bucket.objects() == {"a/x": b"content" * 1000}


@pytest.mark.parametrize("fault", ["500", "503", "drop", "cut answer"])
def test_a_failed_read_is_made_again(
    storage: ObjectStorage, bucket: Bucket, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "FIRST_BYTES", 100)
    data = random.randbytes(5000)
    storage.atomic_write(f"{bucket.url}/a/x", data)
    bucket.proxy.schedule = once(fault, method="GET")
    file = storage.open(f"{bucket.url}/a/x")
    bucket.proxy.schedule = once(fault, method="GET")
    assert file.read() == data
    bucket.proxy.schedule = once(fault, method="GET")
    assert storage.list(f"{bucket.url}/a") == ["x"]


@pytest.mark.parametrize("fault", [None, "500", "503", "409", "drop", "done drop", "done 500", "cut", "twice"])
def test_who_creates_an_object_is_told_so(storage: ObjectStorage, bucket: Bucket, fault: str | None) -> None:
    """Also where the request that created it reported a failure."""
    path = f"{bucket.url}/a/x"
    bucket.proxy.schedule = once(fault) if fault else bucket.proxy.schedule
    assert storage.atomic_write(path, b"mine", exclusive=True) is True
    assert bucket.objects() == {"a/x": b"mine"}


@pytest.mark.parametrize("fault", [None, "500", "503", "409", "drop", "done drop", "done 500", "cut", "twice"])
def test_an_object_of_another_is_not_created(storage: ObjectStorage, bucket: Bucket, fault: str | None) -> None:
    path = f"{bucket.url}/a/x"
    storage.atomic_write(path, b"other")
    bucket.proxy.schedule = once(fault) if fault else bucket.proxy.schedule
    assert storage.atomic_write(path, b"mine", exclusive=True) is False
    assert bucket.objects() == {"a/x": b"other"}


@pytest.mark.parametrize("fault", [None, "500", "drop"])
@pytest.mark.parametrize("is_created", [False, True])
def test_the_same_bytes_of_another_are_another_object(
    storage: ObjectStorage, bucket: Bucket, fault: str | None, is_created: bool
) -> None:
    path = f"{bucket.url}/a/x"
    storage.atomic_write(path, b"mine", exclusive=is_created)
    bucket.proxy.schedule = once(fault) if fault else bucket.proxy.schedule
    assert storage.atomic_write(path, b"mine", exclusive=True) is False


def test_of_many_who_create_at_once_one_does(bucket: Bucket) -> None:
    def create(index: int) -> bool:
        storage = ObjectStorage()
        barrier.wait()
        return storage.atomic_write(f"{bucket.url}/a/x", b"%d" % index, exclusive=True)

    for trial in range(3):
        bucket.proxy.schedule = schedule(trial)
        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(create, range(8)))
        bucket.proxy.schedule = lambda _: None
        winner = bucket.objects()["a/x"]
        assert [index for index, is_mine in enumerate(told) if is_mine] == [int(winner)]
        ObjectStorage().remove(f"{bucket.url}/a/x")


def test_a_store_that_honours_the_condition_is_found(
    storage: ObjectStorage, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    assert storage.probe(f"{bucket.url}/a")
    assert bucket.objects() == {} and not caplog.records


@pytest.mark.parametrize("fault", ["no condition", "501"])
def test_a_store_that_does_not_honour_the_condition_is_found(
    storage: ObjectStorage, bucket: Bucket, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    bucket.proxy.schedule = lambda asked: fault if asked.is_create else None
    assert not storage.probe(f"{bucket.url}/a")
    assert "start one process at a time" in caplog.text
    assert storage.atomic_write(f"{bucket.url}/a/x", b"one", exclusive=True)
    assert not storage.atomic_write(f"{bucket.url}/a/x", b"two", exclusive=True)
    assert bucket.objects() == {"a/x": b"one"}


def test_a_large_object_is_written_in_pieces(
    storage: ObjectStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "ONE_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(object_storage, "PIECE_BYTES", 5 << 20)
    data = random.randbytes(13 << 20)
    bucket.proxy.schedule = schedule(1)
    storage.atomic_write(f"{bucket.url}/a/x", pa.py_buffer(data))
    assert sum("partNumber" in asked for asked in bucket.proxy.requests) >= 3
    assert bucket.objects() == {"a/x": data}


def test_pieces_of_a_write_that_failed_are_removed(
    storage: ObjectStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "ONE_PUT_BYTES", 6 << 20)
    monkeypatch.setattr(object_storage, "PIECE_BYTES", 5 << 20)
    bucket.proxy.schedule = lambda asked: "500" if "partNumber=2" in asked.target else None
    with pytest.raises(StorageError, match="cannot be written: InternalError"):
        storage.atomic_write(f"{bucket.url}/a/x", random.randbytes(13 << 20))
    assert bucket.objects() == {}
    assert bucket.uploads() == 0


def test_an_object_that_is_replaced_while_it_is_read_is_not_damaged(
    storage: ObjectStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_storage, "FIRST_BYTES", 1000)
    path = f"{bucket.url}/a/x"
    storage.atomic_write(path, b"a" * 5000)
    with storage.open(path) as file:
        assert file.read(10) == b"a" * 10
        storage.atomic_write(path, b"b" * 5000)
        with pytest.raises(StorageError, match="another process has replaced it meanwhile") as caught:
            file.read()
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("act", ["list", "open", "write", "create", "remove", "move"])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("403", "AccessDenied of the test; give this user the rights, and check AWS_ACCESS_KEY_ID"),
        ("301", "incorrectly configured region; check AWS_ENDPOINT_URL and AWS_REGION"),
        ("503", "SlowDown of the test"),
        ("drop", "check AWS_ENDPOINT_URL and AWS_REGION"),
    ],
)
def test_an_error_says_what_to_do(
    bucket: Bucket,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    fault: str,
    expected: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(object_storage, "TRIES", 3)
    storage, path = ObjectStorage(), f"{bucket.url}/a/x"
    bucket.proxy.schedule = lambda _: fault
    acts = {
        "list": lambda: storage.list(path),
        "open": lambda: storage.open(path),
        "write": lambda: storage.atomic_write(path, b"x"),
        "create": lambda: storage.atomic_write(path, b"x", exclusive=True),
        "remove": lambda: storage.remove(path),
        "move": lambda: storage.move(path, f"{path}.2"),
    }
    with pytest.raises(StorageError) as caught:
        acts[act]()
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be ") and expected in text and "\n" not in text
    assert caught.value.errno not in (None, errno.EIO), "a store's failure would be taken for a damaged part"
    assert SECRET not in text + caplog.text and "AKIAEXAMPLE" not in text + caplog.text


@pytest.mark.parametrize("act", ["list", "open", "write"])
def test_a_missing_bucket_is_no_missing_file(bucket: Bucket, act: str) -> None:
    storage, path = ObjectStorage(), "s3://no-such-bucket/a/x"
    acts = {"list": storage.list, "open": storage.open, "write": lambda path: storage.atomic_write(path, b"x")}
    with pytest.raises(StorageError, match=r"NoSuchBucket.*make the bucket first"):
        acts[act](path)


def test_a_store_that_does_not_answer(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"Connection refused.*check AWS_ENDPOINT_URL"):
        ObjectStorage().list(f"{bucket.url}/a")
    assert "it is tried again" in caplog.text


def test_a_name_that_the_store_lists_late_is_listed(
    storage: ObjectStorage, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.atomic_write(f"{bucket.url}/a/x", b"one")
    storage.atomic_write(f"{bucket.url}/a/y", b"one")
    storage._obstore.delete(storage._store("s3", bucket.name), "a/y")  # by another process
    nothing = {"objects": [], "common_prefixes": []}
    monkeypatch.setattr(storage._obstore, "list_with_delimiter", lambda *_: nothing)
    assert storage.list(f"{bucket.url}/a") == ["x"]


def test_an_object_for_the_folder_itself_is_no_name_in_it(storage: ObjectStorage, bucket: Bucket) -> None:
    for folder in ("out/", "out/eval/"):
        request(bucket.server, "PUT", f"{bucket.name}/{folder}")
    assert (storage.list(f"{bucket.url}/out/eval"), storage.list(f"{bucket.url}/out")) == ([], ["eval"])
    storage.atomic_write(f"{bucket.url}/out/eval/x", b"one")
    assert (storage.list(f"{bucket.url}/out/eval"), storage.list(f"{bucket.url}/out")) == (["x"], ["eval"])


@pytest.mark.parametrize("key", ["//x", "/../x"])
def test_an_object_with_a_key_that_cannot_be_named_is_told_at_once(
    storage: ObjectStorage, bucket: Bucket, key: str
) -> None:
    request(bucket.server, "PUT", f"{bucket.name}/a{key}")
    bucket.proxy.requests.clear()
    with pytest.raises(StorageError, match="remove that object"):
        storage.list(f"{bucket.url}/a")
    assert len(bucket.proxy.requests) == 1


def test_a_folder_with_more_names_than_a_page(storage: ObjectStorage, bucket: Bucket) -> None:
    names = [f"{index:04d}" for index in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.atomic_write(f"{bucket.url}/a/{name}", b"x"), names))
    assert ObjectStorage().list(f"{bucket.url}/a") == names


def test_lines_become_numbered_objects(storage: ObjectStorage, bucket: Bucket) -> None:
    append = storage.appender(f"{bucket.url}/a/log-1-of-2.jsonl")
    append("1\n", is_urgent=True)
    append("2 \ud800\n", is_urgent=False)
    assert len(bucket.objects()) == 1
    append("3\n", is_urgent=True)
    found = bucket.objects("a")
    assert [*found.values()] == [b"1\n", b"2 \\ud800\n3\n"]
    assert all(name.startswith("log-1-of-2.") and name.endswith(".jsonl") for name in found)
    storage.appender(f"{bucket.url}/a/log-1-of-2.jsonl")("4\n", is_urgent=True)
    assert len(bucket.objects()) == 3


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rwkv_batch\[object-store\]'"):
        ObjectStorage()


@pytest.mark.parametrize("url", ["gs://bucket/a/x", "az://container/a/x"])
def test_the_other_stores_are_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clients are made as their schemes say; no server is asked."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    storage = ObjectStorage()
    scheme, _, rest = url.partition("://")
    kind = type(storage._store(scheme, rest.split("/")[0])).__name__
    assert kind == {"gs": "GCSStore", "az": "AzureStore"}[scheme]


def test_fault_schedules_change_no_content(bucket: Bucket, soak_seed: int) -> None:
    """Random operations against a dictionary, whatever the network does."""
    for trial in range(10):
        seed = 10 * soak_seed + trial
        dice = random.Random(seed)
        storage, folder = ObjectStorage(), f"{bucket.url}/{seed}"
        known: dict[str, bytes] = {}
        bucket.proxy.schedule = schedule(seed, share=0.3)
        for step in range(30):
            name, data = dice.choice("abc"), dice.randbytes(dice.choice([0, 10, 3000]))
            act = dice.choice(["write", "create", "remove", "move", "read", "list"])
            if act == "write":
                storage.atomic_write(f"{folder}/{name}", data)
                known[name] = data
            elif act == "create":
                is_mine = storage.atomic_write(f"{folder}/{name}", data, exclusive=True)
                assert not is_mine or name not in known, (seed, step)
                known.setdefault(name, data)
            elif act == "remove":
                storage.remove(f"{folder}/{name}")
                known.pop(name, None)
            elif act == "move" and name in known:
                storage.move(f"{folder}/{name}", f"{folder}/moved")
                known["moved"] = known.pop(name)
            elif act == "read" and name in known:
                assert content(storage, f"{folder}/{name}") == known[name], (seed, step)
            elif act == "list":
                assert storage.list(folder) == sorted(known), (seed, step)
        assert bucket.objects(str(seed)) == known, seed
