"""Compiled kernels are kept in the first folder that can be written to, and loaded from every folder that is safe."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwkv_batch.kernel_support import cache
from rwkv_batch.kernel_support.cache import kept, one_at_a_time, places, private_folder, private_folders


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The three places, none of which exists."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return [
        tmp_path / "xdg" / "rwkv_batch" / "some",
        tmp_path / "home" / ".cache" / "rwkv_batch" / "some",
        tmp_path / f"rwkv_batch-{os.geteuid()}-some",
    ]


def test_the_order_of_the_places(three: list[Path]) -> None:
    assert list(places("some")) == three


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_variable_without_an_absolute_path_is_ignored(
    three: list[Path], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert list(places("some")) == three[1:]


def test_a_user_without_a_home(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert list(places("some")) == [three[0], three[2]]


def test_the_first_folder_is_made_for_its_user_alone(three: list[Path]) -> None:
    assert private_folder("some") == three[0]
    assert three[0].stat().st_mode & 0o777 == 0o700
    assert not three[1].exists()


def test_a_folder_that_others_can_write_to_is_repaired_and_until_then_not_loaded_from(three: list[Path]) -> None:
    private_folder("some")
    (three[0] / "x.so").touch()
    three[0].chmod(0o770)
    assert list(kept("some", "x.so")) == []
    assert private_folder("some") == three[0]
    assert list(kept("some", "x.so")) == [three[0] / "x.so"]


def in_place_of_a_folder(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.touch()


def belongs_to_another_user(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(parents=True, mode=0o700)
    original = Path.lstat

    def lstat(path: Path) -> Any:
        found = original(path)
        return SimpleNamespace(st_mode=found.st_mode, st_uid=12345) if path == place else found

    monkeypatch.setattr(Path, "lstat", lstat)


def mounted_with_noexec(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.statvfs

    def statvfs(path: Any) -> Any:
        return SimpleNamespace(f_flag=os.ST_NOEXEC) if Path(path) == place else original(path)

    monkeypatch.setattr(os, "statvfs", statvfs)


def read_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir(parents=True, mode=0o700)
    original = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place and original(path, mode))


@pytest.mark.parametrize("fault", ["a file", "another user", "noexec", "read-only", "a link", "a loop"])
def test_a_place_that_does_not_serve_is_left_for_the_next_one(
    three: list[Path], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    place = three[0]
    if fault == "a file":
        in_place_of_a_folder(place)
    elif fault in ("a link", "a loop"):
        place.parent.mkdir(parents=True)
        place.symlink_to(place if fault == "a loop" else place.parent)
    else:
        fault_of = {"another user": belongs_to_another_user, "noexec": mounted_with_noexec, "read-only": read_only}
        fault_of[fault](place, monkeypatch)
    assert list(private_folders("some", for_libraries=True)) == three[1:]
    assert list(kept("some", "*")) == []
    assert place.parent.stat().st_mode & 0o777 != 0o700


def test_what_is_there_is_found_in_every_safe_place(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in three:
        place.mkdir(parents=True, mode=0o700)
        (place / "x-2.so").touch()
    (three[1] / "x-1.so").touch()
    read_only_place, foreign = three[0], three[2]
    read_only_place.chmod(0o555)
    belongs_to_another_user(foreign.with_name("foreign"), monkeypatch)
    assert list(kept("some", "x-*.so")) == [
        three[0] / "x-2.so",
        three[1] / "x-1.so",
        three[1] / "x-2.so",
        three[2] / "x-2.so",
    ]


def test_what_another_user_has_put_there_is_not_loaded(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to_another_user(three[2], monkeypatch)
    (three[2] / "x.so").touch()
    assert list(kept("some", "x.so")) == []


def test_without_any_place_the_error_has_all_reasons(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in three:
        in_place_of_a_folder(place) if place != three[2] else place.touch()
    with pytest.raises(OSError, match="no folder to keep files in") as caught:
        private_folder("some")
    assert all(str(place) in str(caught.value) for place in three)
    monkeypatch.setattr(cache, "places", lambda name: [])
    with pytest.raises(OSError, match="no home and no temporary folder"):
        private_folder("some")


def test_the_lock_keeps_others_out_and_says_that_it_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, order = tmp_path / "x.lock", list[str]()

    def other() -> None:
        with one_at_a_time(path):
            order.append("other")

    with one_at_a_time(path):
        thread = threading.Thread(target=other)
        thread.start()
        while "waiting for another process" not in caplog.text:
            assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    assert str(path) in caplog.text


def test_a_lock_that_is_never_released_ends_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.0)
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.0)
    with one_at_a_time(tmp_path / "x.lock"), one_at_a_time(tmp_path / "x.lock"):
        pass
    assert "going on without it" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "x.lock").touch()
    with one_at_a_time(tmp_path / "x.lock"):
        pass


def test_a_lock_file_that_cannot_be_made(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path / "no such folder" / "x.lock"):
        pass
