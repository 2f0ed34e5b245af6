"""Folders with links, names that are not UTF-8, and special files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.input.files import find_files
from rwkv_batch.job.input.formats import EXTENSIONS
from rwkv_batch.job.input.reader import open_input

from ..conftest import Job


def names(path: Path | str) -> list[str]:
    return [os.path.basename(file.path) for file in find_files(str(path), EXTENSIONS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "b.jsonl").write_text('{"prompt": "b"}\n')
    (tmp_path / "in" / "sub" / "c.jsonl").write_text('{"prompt": "c"}\n')
    return tmp_path / "in"


def test_links_to_folders_above_are_not_followed(folder: Path) -> None:
    for link in ("one", "two", "sub/three"):
        (folder / link).symlink_to(folder)
    (folder / "sub" / "four").symlink_to(folder.parent)
    assert names(folder) == names(folder.parent) == ["b.jsonl", "c.jsonl"]


def test_a_real_file_comes_once_and_under_its_own_name(folder: Path) -> None:
    (folder / "a.jsonl").symlink_to("b.jsonl")
    (folder / "a").symlink_to("sub")
    assert names(folder) == ["b.jsonl", "c.jsonl"]
    assert names(f"{folder}/a*.jsonl") == ["a.jsonl"]
    assert names(f"{folder}/a/*.jsonl") == names(f"{folder}/a*/*.jsonl") == ["c.jsonl"]
    assert [file.name for file in find_files([f"{folder}/a.jsonl", str(folder)], EXTENSIONS)] == [
        f"{folder}/b.jsonl",
        f"{folder}/sub/c.jsonl",
    ]


def test_a_link_to_nothing_is_named_if_it_would_be_read(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("gone")
    assert names(folder) == ["b.jsonl", "c.jsonl"]
    (folder / "a.jsonl").symlink_to("gone")
    with pytest.raises(ConfigurationError, match=r"a link to a file that is not there.*a\.jsonl"):
        names(folder)


def test_special_files_are_no_input(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jsonl")
    assert names(folder) == ["b.jsonl", "c.jsonl"]


def test_names_that_are_not_utf8(folder: Path, job: Job) -> None:
    os.mkdir(os.fsencode(folder) + b"/n=\xe9")
    for name in (b"/caf\xe9.txt", b"/caf\xe9.jsonl", b"/n=\xe9/x.jsonl"):
        Path(os.fsdecode(os.fsencode(folder) + name)).write_text('{"prompt": "a"}\n')
    source = open_input(str(folder), "auto", {})
    assert [file.name.removeprefix(str(folder)) for file in source.files] == [
        "/b.jsonl",
        "/caf\\xe9.jsonl",
        "/n=\\xe9/x.jsonl",
        "/sub/c.jsonl",
    ]
    job.set(input__path=str(folder), input__columns={"n": None})
    assert job.run() == 0
    assert [row["n"] for row in job.rows()] == [None, None, "\\xe9", None]


@pytest.mark.parametrize("glob", ["*" * 99 + ".jsonl", "**/" * 99 + "a.jsonl"])
def test_repeated_wildcards(tmp_path: Path, glob: str) -> None:
    name = "/".join(["folder"] * 9) + "/b.txt"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    (tmp_path / "a.jsonl").touch()
    assert [file.name for file in find_files(f"{tmp_path}/{glob}", [".jsonl"])] == [f"{tmp_path}/a.jsonl"]
