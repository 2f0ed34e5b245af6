"""Models in object stores, by address: a real S3 server over HTTP, behind a proxy that makes faults."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.fault_proxy import Request, schedule
from fakes.object_store import SECRET, Bucket, hurry, stores

from rwkv_batch.errors import CheckpointError, ConfigurationError, MissingExtraError
from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.model_summary import DEMO_MODEL, inspect_model
from rwkv_batch.models.files import bucket as bucket_module
from rwkv_batch.models.files.bucket import ModelBucket
from rwkv_batch.models.files.checkpoint import open_checkpoint, sha256_of_model
from rwkv_batch.models.files.remote import download
from rwkv_batch.settings import EngineSettings, ModelSettings

DATA = os.urandom(1 << 20)
PIECE = 100_000
ROOT = Path(__file__).parents[3]
CODE = f"""
import sys
from rwkv_batch.models.files import bucket
from rwkv_batch.models.files.remote import download
bucket.PIECE_BYTES = {PIECE}
sys.stdin.readline()
print(download(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def make_bucket() -> Iterator[Any]:
    with stores() as make:
        yield make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rwkv_batch" / "models"


@pytest.fixture
def bucket(make_bucket: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    found: Bucket = make_bucket()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    hurry(monkeypatch)
    monkeypatch.setattr(bucket_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(bucket_module, "PIECE_BYTES", PIECE)
    return found


def put(url: str, data: bytes = DATA) -> str:
    ObjectStorage().atomic_write(url, data)
    return url


def fetched(bucket: Bucket) -> int:
    """The number of pieces that were asked for; forgets all requests."""
    count = sum(request.startswith("GET") and "list-type" not in request for request in bucket.proxy.requests)
    bucket.proxy.requests.clear()
    return count


def start(url: str) -> subprocess.Popen[str]:
    """A process that fetches an address when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Path:
    path, message = process.communicate("\n")
    assert process.returncode == 0, message
    return Path(path.strip())


def test_an_object_is_fetched_once_and_recorded_with_its_checksum(bucket: Bucket, cache: Path) -> None:
    url = put(f"{bucket.url}/models/m 1.pth")
    path = download(url)
    assert path.name == "m 1.pth" and path.read_bytes() == DATA and path.is_relative_to(cache)
    assert fetched(bucket) == len(DATA) // PIECE + 1
    assert (download(url), fetched(bucket)) == (path, 0)
    record = json.loads(path.parent.with_suffix(".json").read_text())
    entry = record["files"]["m 1.pth"]
    assert (entry["size"], entry["sha256"]) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert record["address"] == url and entry["e_tag"]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_an_object_that_was_replaced_is_fetched_again(bucket: Bucket) -> None:
    first = download(put(f"{bucket.url}/m.pth"))
    second = download(put(f"{bucket.url}/m.pth", DATA[::-1]))
    assert (first.read_bytes(), second.read_bytes()) == (DATA, DATA[::-1])
    assert download(put(f"{bucket.url}/other/m.pth", DATA)).parent.parent != second.parent.parent


def test_a_folder_is_fetched_without_files_that_no_model_has(bucket: Bucket) -> None:
    names = ["config.json", "model-1.safetensors", "model-2.safetensors", "chat_template.jinja"]
    for name in [*names, "README.md", "model.bin", "nested/model.safetensors"]:
        put(f"{bucket.url}/models/v7/{name}", name.encode())
    folder = download(f"{bucket.url}/models/v7/")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: name.encode() for name in names}
    fetched(bucket)
    assert (download(f"{bucket.url}/models/v7"), fetched(bucket)) == (folder, 0)


def test_a_model_with_its_tokenizer_and_state_is_inspected(bucket: Bucket, tmp_path: Path) -> None:
    url = put(f"{bucket.url}/m.safetensors", DEMO_MODEL.read_bytes())
    vocabulary = "".join(f"{i} {bytes([i])!r} 1\n" for i in range(1, 256))
    tokenizer = put(f"{bucket.url}/vocab.txt", vocabulary.encode())
    checkpoint = open_checkpoint(url)
    assert checkpoint.fingerprint() == open_checkpoint(DEMO_MODEL).fingerprint() == sha256_of_model(url)
    shapes = {checkpoint.shape(name) for name in checkpoint.names if name.endswith("att.r_k")}
    layers = sum(name.endswith("att.r_k") for name in checkpoint.names)
    ((heads, size),) = shapes
    state = {f"blocks.{i}.att.time_state": torch.zeros(heads, size, size) for i in range(layers)}
    torch.save(state, tmp_path / "state.pth")
    init_state = put(f"{bucket.url}/state.pth", (tmp_path / "state.pth").read_bytes())
    settings = ModelSettings(model=url, tokenizer=tokenizer, init_state=init_state)
    summary = inspect_model(settings, EngineSettings(device="cpu"))
    local = ModelSettings(model=DEMO_MODEL, init_state=tmp_path / "state.pth")
    assert summary.fingerprint == inspect_model(local, EngineSettings(device="cpu")).fingerprint
    assert summary.tokenizer is not None and summary.tokenizer.encode("\x01\x02") == [1, 2]
    assert str(summary).startswith("m.safetensors, rwkv7")


def test_of_processes_that_start_together_one_fetches(bucket: Bucket) -> None:
    url = put(f"{bucket.url}/m.pth")
    fetched(bucket)
    processes = [start(url) for _ in range(8)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    paths = {end(process) for process in processes}
    assert len(paths) == 1 and paths.pop().read_bytes() == DATA
    assert fetched(bucket) == len(DATA) // PIECE + 1


def test_a_process_that_is_killed_leaves_nothing_that_counts(bucket: Bucket, cache: Path) -> None:
    url = put(f"{bucket.url}/m.pth")
    fetched(bucket)
    is_reached, may_go = threading.Event(), threading.Event()

    def hold(request: Request) -> str | None:
        if request.headers.get("range", "").startswith(f"bytes={5 * PIECE}-"):
            is_reached.set()
            may_go.wait()
        return None

    bucket.proxy.schedule = hold
    process = start(url)
    process.stdin.write("\n")
    process.stdin.flush()
    assert is_reached.wait(60)
    process.kill()
    process.communicate()
    assert len([*cache.rglob("*.tmp")]) == 1 and not [*cache.rglob("*.json")]
    may_go.set()
    path = download(url)
    assert path.read_bytes() == DATA and not [*cache.rglob("*.tmp")]


@pytest.mark.parametrize("damage", ["a byte", "the end", "the file", "the record", "touched"])
def test_a_copy_that_is_damaged_is_fetched_again(bucket: Bucket, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    url = put(f"{bucket.url}/m.pth")
    path = download(url)
    fetched(bucket)
    if damage == "a byte":
        path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    elif damage == "the end":
        os.truncate(path, len(DATA) - 1)
    elif damage == "the file":
        path.unlink()
    elif damage == "the record":
        path.parent.with_suffix(".json").write_text("{")
    else:
        os.utime(path, (1, 1))
    assert download(url).read_bytes() == DATA
    assert (fetched(bucket) == 0) == (damage == "touched")
    assert ("is damaged" in caplog.text) == (damage not in ("touched", "the file"))


@pytest.mark.parametrize("fault", ["drop", "503"])
def test_a_store_out_of_reach(bucket: Bucket, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{bucket.url}/m.pth"
    put(url, b"older")
    download(url)
    path = download(put(url))
    bucket.proxy.schedule = lambda _: fault
    assert download(url) == path
    assert "the store is out of reach" in caplog.text and str(path) in caplog.text
    with pytest.raises(CheckpointError, match=r"other.pth: cannot be fetched: .*or name a file that you have downl"):
        download(f"{bucket.url}/other.pth")


def test_a_store_that_refuses_is_not_out_of_reach(bucket: Bucket) -> None:
    url = put(f"{bucket.url}/m.pth")
    download(url)
    bucket.proxy.schedule = lambda _: "403"
    with pytest.raises(
        CheckpointError, match=r"model: .*m.pth: cannot be fetched: .*check AWS_ACCESS_KEY_ID"
    ) as caught:
        download(url)
    assert SECRET not in str(caught.value)


def test_an_object_that_is_gone_is_no_reason_for_its_copy(bucket: Bucket) -> None:
    url = put(f"{bucket.url}/m.pth")
    download(url)
    ObjectStorage().remove(url)
    with pytest.raises(CheckpointError, match=r"neither such an object nor a folder with .*check the address"):
        download(url)


@pytest.mark.parametrize("seed", range(3))
def test_faults_change_no_byte(bucket: Bucket, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = put(f"{bucket.url}/m.pth")
    bucket.proxy.schedule = schedule(seed)
    assert download(url).read_bytes() == DATA
    assert SECRET not in caplog.text


def test_an_object_that_is_replaced_while_it_is_fetched_is_not_mixed(bucket: Bucket, cache: Path) -> None:
    url = put(f"{bucket.url}/m.pth")
    contents = ModelBucket(url).contents()
    put(url, DATA[::-1])
    with pytest.raises(Exception, match="412"):
        list(ModelBucket(url).pieces(contents.files[0]))


def test_a_store_that_sends_less_is_noticed(bucket: Bucket, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(f"{bucket.url}/m.pth")
    monkeypatch.setattr(ModelBucket, "pieces", lambda *_: iter([DATA[:100]]))
    with pytest.raises(CheckpointError, match=r"the store has sent 100 bytes of m\.pth, expected 1,048,576"):
        download(url)
    assert not [*cache.rglob("*.pth")]


def test_a_full_disk_is_told_before_anything_is_fetched(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(f"{bucket.url}/m.pth")
    fetched(bucket)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"has room for 1 bytes, expected 1,048,576.*XDG_CACHE_HOME"):
        download(url)
    assert fetched(bucket) == 0


@pytest.mark.parametrize(
    ("address", "error", "expected"),
    [
        ("s3://bucket", ConfigurationError, "expected a file or folder in a bucket, such as s3://bucket/model.pth"),
        ("ftp://host/m.pth", ConfigurationError, "model: .*ftp:// is not served; expected s3://, gs:// or az://"),
        ("s3://key:hidden@bucket/m.pth", ConfigurationError, "expected credentials in the environment alone"),
        ("s3://no-such-bucket/m.pth", CheckpointError, "NoSuchBucket|check the address"),
    ],
)
def test_addresses_that_are_refused(bucket: Bucket, address: str, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected) as caught:
        open_checkpoint(address)
    assert "hidden" not in str(caught.value)


def test_without_obstore_the_extra_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        MissingExtraError, match=r"a model in an object store .*pip install 'rwkv_batch\[object-store\]'"
    ):
        open_checkpoint("s3://bucket/m.pth")
