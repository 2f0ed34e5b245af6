"""A file that changes is noticed at every read; a file that was only touched, moved or copied is not refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rwkv_batch import checksum
from rwkv_batch.errors import ResumeError
from rwkv_batch.job.input import version
from rwkv_batch.job.input.files import InputFile, find_files
from rwkv_batch.job.input.reader import open_input

OLD = (10**18, 10**18)
"""Times of a file that was written long ago, in nanoseconds."""


def written(path: Path, *prompts: str) -> InputFile:
    """A Parquet file without statistics in its footer, so that texts of one length have one footer."""
    pq.write_table(pa.table({"prompt": prompts}), path, write_statistics=False, use_dictionary=False)
    (file,) = find_files(str(path), [".parquet"])
    return file


def rewritten(path: Path, *prompts: str) -> None:
    """Puts other content into a file and keeps its inode, size and time of the last change."""
    before = path.stat()
    other = path.with_suffix(".other")
    pq.write_table(pa.table({"prompt": prompts}), other, write_statistics=False, use_dictionary=False)
    content = other.read_bytes()
    other.unlink()
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each read of a file for its hash."""
    reads: list[int] = []
    original = checksum.sha256_of

    def counted(file: Any) -> str:
        reads.append(1)
        return original(file)

    monkeypatch.setattr(version, "sha256_of", counted)
    return reads


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every file look as if it was written long ago."""
    monkeypatch.setattr(version, "SETTLED_NS", -(10**15))


def test_the_version_is_the_hash_of_the_content(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", "one", "two")
    digest = hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
    assert file.version.record()["version"] == f"sha256:{digest}"


def test_an_unchanged_file_is_read_once_for_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    settle(monkeypatch)
    path = tmp_path / "a.parquet"
    entry = written(path, "one", "two").version.record()
    (again,) = find_files(str(path), [])
    assert again.version.differs(**entry) is None
    again.version.check()
    assert len(hashed) == 1


@pytest.mark.parametrize("how", ["touched", "moved", "copied", "linked"])
def test_the_same_content_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], how: str
) -> None:
    settle(monkeypatch)
    path, moved = tmp_path / "a.parquet", tmp_path / "b.parquet"
    entry = written(path, "one", "two").version.record()
    acts: dict[str, Any] = {
        "touched": lambda: os.utime(path, ns=OLD),
        "moved": lambda: os.rename(path, moved),
        "copied": lambda: shutil.copy(path, moved),
        "linked": lambda: os.link(path, moved),
    }
    acts[how]()
    (again,) = find_files(str(path if how == "touched" else moved), [])
    assert again.version.differs(**entry) is None
    assert len(hashed) == 2


def test_other_content_with_the_same_footer_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    path = tmp_path / "a.parquet"
    entry = written(path, "one", "two").version.record()
    rewritten(path, "two", "one")
    (again,) = find_files(str(path), [])
    found = again.version.differs(**entry)
    assert found is not None and found.startswith("sha256:") and found != entry["version"]


def test_the_stamp_of_a_file_that_was_written_just_now_is_not_recorded(tmp_path: Path) -> None:
    """A second change within the resolution of the clock would leave the stamp as it is."""
    assert written(tmp_path / "a.parquet", "one").version.record()["stamp"] is None


def test_a_change_is_noticed_at_every_open(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    file.version.differs(**file.version.record())
    file.open()
    rewritten(path, "two", "one")
    with pytest.raises(ResumeError, match=f"the input changed while the job ran: {path}"):
        file.open()
    with pytest.raises(ResumeError, match="the input changed"):
        file.open()


def test_a_touch_while_a_job_runs_is_no_change(tmp_path: Path, hashed: list[int]) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    file.version.differs(**file.version.record())
    os.utime(path, ns=OLD)
    file.open()
    file.open()
    assert len(hashed) == 2


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    file.open()
    path.unlink()
    with pytest.raises(ResumeError, match=f"{path} is gone"):
        file.open()


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_no_row_is_given_that_was_read_after_a_change(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        written(path, *(f"{row:04}" for row in range(2000)))
    else:
        path.write_text("".join(f'{{"prompt": "{row:04}"}}\n' for row in range(2000)))
    source = open_input(str(path), "auto", {})
    batches = source.read(0, 2000, ["prompt"])
    assert next(batches).batch["prompt"][0].as_py() == "0000"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"x")
    with pytest.raises(ResumeError, match=str(path)):
        list(batches)


def test_an_error_that_a_change_has_led_to_is_the_change(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    written(path, "one", "two")
    source = open_input(str(path), "auto", {})

    def torn() -> Any:
        path.write_bytes(b"PAR1")
        raise pa.ArrowInvalid("no footer")
        yield

    with pytest.raises(ResumeError, match="the input changed"):
        list(source.files[0].version.checked(torn()))


def test_an_error_of_an_unchanged_file_stays_what_it_is(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", "one", "two")
    with pytest.raises(pa.ArrowInvalid, match="a damaged page"):
        list(file.version.checked(iter_raising(pa.ArrowInvalid("a damaged page"))))


def iter_raising(error: Exception) -> Any:
    raise error
    yield


def test_a_file_that_grows_while_it_is_hashed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    original = checksum.sha256_of

    def growing(stream: Any) -> str:
        with open(path, "ab") as other:
            other.write(b"more")
        return original(stream)

    file.open()
    monkeypatch.setattr(version, "sha256_of", growing)
    with pytest.raises(ResumeError, match="changes while it is read"):
        file.version.record()


def test_the_footer_that_an_earlier_release_recorded_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    footer = path.read_bytes()[-8 - pq.read_metadata(path).serialized_size :]
    recorded = f"footer-sha256:{hashlib.sha256(footer).hexdigest()}"
    assert (file.version.differs(recorded, None), file.version.is_weak) == (None, True)
    found = written(path, "three").version.differs(recorded, None)
    assert found is not None and found.startswith("footer-sha256:") and found != recorded


def test_a_footer_does_not_prove_that_a_file_stays_the_same_while_a_job_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, "one", "two")
    footer = path.read_bytes()[-8 - pq.read_metadata(path).serialized_size :]
    file.version.differs(f"footer-sha256:{hashlib.sha256(footer).hexdigest()}", None)
    rewritten(path, "two", "one")
    with pytest.raises(ResumeError, match="the input changed"):
        file.open()


def test_a_version_of_an_unknown_kind_is_a_difference(tmp_path: Path) -> None:
    assert written(tmp_path / "a.parquet", "one").version.differs("crc32:00", None) == ""


def test_a_remote_object_has_its_time_for_a_version(hashed: list[int]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/versions/a.jsonl", b'{"prompt": "one"}\n')
    (file,) = find_files("memory://versions/a.jsonl", [])
    entry = file.version.record()
    assert entry["version"].startswith("modified:") and not hashed
    file.version.differs(**entry)
    file.open()
    memory.pipe("/versions/a.jsonl", b'{"prompt": "two"}\n')
    with pytest.raises(ResumeError, match="changed while the job ran: memory://"):
        file.open()
    (again,) = find_files("memory://versions/a.jsonl", [])
    assert again.version.differs(**entry)


def test_a_remote_object_without_a_time_has_the_hash_of_its_content(
    monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    memory = fsspec.filesystem("memory")
    monkeypatch.delattr(type(memory), "modified")  # that of the class above is not implemented
    memory.pipe("/versions/b.jsonl", b'{"prompt": "one"}\n')
    (file,) = find_files("memory://versions/b.jsonl", [])
    entry = file.version.record()
    assert entry["version"] == f"sha256:{hashlib.sha256(memory.cat('/versions/b.jsonl')).hexdigest()}"
    file.version.differs(**entry)
    memory.pipe("/versions/b.jsonl", b'{"prompt": "one"}\n')  # another key, the same content
    file.open()
    memory.pipe("/versions/b.jsonl", b'{"prompt": "two"}\n')
    with pytest.raises(ResumeError, match="the input changed"):
        file.open()
