"""The native library: loaded from wherever it is, built where it can be, and never in a half-written form."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.cpu_kernels import build
from rwkv_batch.kernel_support import cache, ninja

ROOT = Path(__file__).parents[2]

if build.unavailable():
    pytest.skip(str(build.unavailable()), allow_module_level=True)

LIBRARY = Path(build.library()._name)


class Builds:
    """Stands in for ninja: gives a library that was built before, and counts.

    Attributes:
        folders: in which something was built.
        full: folders on a full disk.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.full: set[Path] = set()

    @contextmanager
    def built(self, parent: Path, lines: Sequence[str], compiler: str, *options: str) -> Iterator[Path]:
        if parent in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(parent))
        self.folders.append(parent)
        target = re.match(r"build (\S+): link", lines[-1])
        assert target
        work = Path(tempfile.mkdtemp(dir=parent))
        shutil.copy(LIBRARY, work / target[1])
        yield work
        shutil.rmtree(work)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(build, "built", builds.built)
    return builds


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two places for the library."""
    found = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr(cache, "places", lambda name: found)
    return found


def library() -> Any:
    """The library, loaded as in a new process."""
    return build.library.__wrapped__()


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EROFS, "Read-only file system")


def test_what_is_there_needs_no_compiler_no_lock_and_no_change(
    two: list[Path], builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    two[1].mkdir(mode=0o700)
    shutil.copy(LIBRARY, two[1])
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(build, "one_at_a_time", refuse)
    for name in ("chmod", "mkdir", "open"):
        monkeypatch.setattr(os, name, refuse)
    assert library()._name == str(two[1] / LIBRARY.name)
    assert not builds.folders


def test_a_build_is_announced_and_made_once(two: list[Path], builds: Builds, caplog: pytest.LogCaptureFixture) -> None:
    assert library()._name == library()._name == str(two[0] / LIBRARY.name)
    assert builds.folders == [two[0]]
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert messages == [f"building the native CPU kernels in {two[0]}; this takes up to a minute, once"]
    assert {path.suffix for path in two[0].iterdir()} == {".so", ".lock"}


def test_a_damaged_library_is_built_again(two: list[Path], builds: Builds) -> None:
    two[0].mkdir(mode=0o700)
    (two[0] / LIBRARY.name).write_bytes(b"no library")
    assert library()._name == str(two[0] / LIBRARY.name)
    assert (two[0] / LIBRARY.name).read_bytes() == LIBRARY.read_bytes()


def test_a_damaged_library_is_named_where_none_can_be_built(
    two: list[Path], builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    two[0].mkdir(mode=0o700)
    (two[0] / LIBRARY.name).write_bytes(b"no library")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(build.BuildError, match=f"no C\\+\\+ compiler.*cannot load {two[0]}"):
        library()


def test_a_full_disk_leaves_the_build_to_the_next_place(two: list[Path], builds: Builds) -> None:
    builds.full = {two[0]}
    assert library()._name == str(two[1] / LIBRARY.name)


def test_full_disks_in_all_places_are_a_reason(two: list[Path], builds: Builds) -> None:
    builds.full = {*two}
    with pytest.raises(build.BuildError, match="No space left on device"):
        library()


def test_a_library_that_another_process_has_built_meanwhile_is_taken(
    two: list[Path], builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def lock(path: Path) -> Iterator[None]:
        shutil.copy(LIBRARY, path.parent)
        yield

    monkeypatch.setattr(build, "one_at_a_time", lock)
    assert library()._name == str(two[0] / LIBRARY.name)
    assert not builds.folders


def test_a_compiler_that_fails_says_why(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho these are its own words\nexit 1\n")
    compiler.chmod(0o755)
    tool = ninja._ninja()
    monkeypatch.setattr(shutil, "which", lambda name, **_: tool if name == "ninja" else str(compiler))
    with pytest.raises(build.BuildError, match="these are its own words"):
        library()
    assert not [path for place in two for path in place.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("home", ["/dev/null", "/", "", None])
def test_a_process_without_a_home_or_a_compiler_loads_what_is_among_temporary_files(
    tmp_path: Path, home: str | None
) -> None:
    place = tmp_path / f"rwkv_batch-{os.geteuid()}-cpu_kernels"
    place.mkdir(mode=0o700)
    shutil.copy(LIBRARY, place)
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": "/dev/null"}
    if home is not None:
        environment["HOME"] = home
    code = (
        "from pathlib import Path\n"
        "def home():\n    raise RuntimeError('no home')\n"
        f"Path.home = home if {home is None} else Path.home\n"
        "from rwkv_batch.cpu_kernels import build; print(build.library()._name)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{place / LIBRARY.name}\n", done.stderr
