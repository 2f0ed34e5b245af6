"""Segments of a job in an object store that lie on this machine's disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from fakes.object_store import Bucket

from rwkv_batch.job.output.object_storage import ObjectStorage
from rwkv_batch.job.output.scratch_storage import ScratchStorage, scratch_folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "one job"


def storage(bucket: Bucket, scratch: Path, *, is_written: bool = True) -> ScratchStorage:
    return ScratchStorage(ObjectStorage(), f"{bucket.url}/s", str(scratch), is_written=is_written)


def files(scratch: Path) -> dict[str, bytes]:
    return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in scratch.rglob("*") if path.is_file()}


def test_segments_are_on_the_disk_and_everything_else_in_the_store(bucket: Bucket, scratch: Path) -> None:
    here, state = storage(bucket, scratch), f"{bucket.url}/s"
    assert here.list(f"{state}/unit-00000") == []
    assert here.atomic_write(f"{state}/unit-00000/a.seg", pa.py_buffer(b"segment"))
    assert here.atomic_write(f"{state}/job.json", b"job", exclusive=True)
    assert not here.atomic_write(f"{state}/job.json", b"another", exclusive=True)
    assert here.replace(f"{state}/job.json", b"other job", b"job")
    here.atomic_write(f"{bucket.url}/out/part.parquet", b"part")
    here.appender(f"{state}/log.jsonl")("line\n", is_urgent=True)
    assert files(scratch) == {"unit-00000/a.seg": b"segment"}
    assert sorted(bucket.objects().values()) == [b"line\n", b"other job", b"part"]
    assert here.list(f"{state}/unit-00000") == ["a.seg"]
    with here.open(f"{state}/unit-00000/a.seg") as file:
        assert file.read() == b"segment"
    assert scratch.stat().st_mode & 0o777 == 0o700, "rows of others are nobody's business"
    here.remove(f"{state}/unit-00000/a.seg")
    here.remove(f"{state}/unit-00000/a.seg")
    assert files(scratch) == {}
    with pytest.raises(FileNotFoundError):
        here.open(f"{state}/unit-00000/a.seg")


@pytest.mark.parametrize("is_written", [False, True])
def test_segments_are_found_in_both_places(bucket: Bucket, scratch: Path, is_written: bool) -> None:
    folder = f"{bucket.url}/s/unit-00007"
    storage(bucket, scratch).atomic_write(f"{folder}/disk.seg", b"disk")
    storage(bucket, scratch, is_written=False).atomic_write(f"{folder}/store.seg", b"store")
    assert [*bucket.objects("s").values()] == [b"store"]
    found = storage(bucket, scratch, is_written=is_written)
    assert found.list(folder) == ["disk.seg", "store.seg"]
    assert [found.open(f"{folder}/{name}").read() for name in found.list(folder)] == [b"disk", b"store"]
    for name in found.list(folder):
        found.move(f"{folder}/{name}", f"{bucket.url}/s/damaged/{name}")
    assert found.list(folder) == [] and files(scratch) == {}
    assert bucket.objects("s/damaged") == {"disk.seg": b"disk", "store.seg": b"store"}
    found.atomic_write(f"{folder}/new.seg", b"new")
    found.remove(f"{folder}/new.seg")
    assert (bucket.objects("s/unit-00007"), files(scratch)) == ({}, {})


def test_what_a_killed_process_left_half_written_is_swept(bucket: Bucket, scratch: Path) -> None:
    (scratch / "tmp").mkdir(parents=True)
    (scratch / "tmp" / "x.tmp").write_bytes(b"half")
    assert storage(bucket, scratch).sweep() == 1 and files(scratch) == {}


def test_each_job_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    states = ["s3://a/eval", "s3://b/eval", "gs://a/eval", f"s3://a/{'ü' * 200}", "s3://a/x/eval"]
    found = [Path(str(scratch_folder(state))) for state in states]
    assert len(set(found)) == len(states) and {path.parent for path in found} == {tmp_path / "rwkv_batch" / "segments"}
    assert scratch_folder(states[0]) == str(found[0]) and not any(tmp_path.iterdir())
    found[3].mkdir(parents=True)


def test_a_user_without_a_home_has_no_scratch_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert scratch_folder("s3://a/eval") is None
