"""The checkpoints of a suite: which files patterns name, what each is called in results, and when one is complete."""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..commands.target_file import target_file
from ..errors import ConfigurationError, RwkvBatchError, looked_up

FILE = "models.json"
Stamp = tuple[int, int]
"""Bytes of the files of a checkpoint, and the time of the last change in nanoseconds."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a suite.

    Args:
        id: its name in results.
        path: what a job has as `model.path`: an absolute path, an address, or "demo".
        sha256: of its weights.
        stamp: when it was read; None for what is no local file.
    """

    id: str
    path: str
    sha256: str
    stamp: Stamp | None


class Checkpoints:
    """The checkpoints that were ever found for a folder of results. They keep their ids, which `models.json` records.

    Args:
        folder: of the results.
        say: shows a line.
    """

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        self._file = os.path.join(folder, FILE)
        self._say = say
        self._known = {one.id: one for one in _recorded(self._file)}

    def open(self, path: str) -> Checkpoint:
        """The checkpoint of a path, with the checksum of its weights.

        Raises:
            RwkvBatchError, OSError: it cannot be read.
        """
        stamp = stamp_of(path)
        before = next((one for one in self._known.values() if one.path == path), None)
        if before is not None and stamp is not None and before.stamp == stamp:
            return before
        if stamp is not None:
            self._say(f"{path}: computing the checksum of its weights")
        sha256 = _sha256(path)
        known = self._id(path, sha256) if before is None else before.id
        self._known[known] = Checkpoint(known, path, sha256, stamp)
        return self._known[known]

    def save(self) -> None:
        """Writes the ids to the folder of the results."""
        text = json.dumps([asdict(one) for one in self._known.values()], indent=1)
        with target_file(self._file, overwrite=True) as file:
            file.write(text.encode())

    def _id(self, path: str, sha256: str) -> str:
        """The id of a path that has none: the name of the file, with those of folders where it is taken.

        A moved file, which has the same name and the same weights, keeps its id.
        """
        for name in _names(path):
            taken = self._known.get(name)
            if taken is None or (taken.sha256 == sha256 and not os.path.exists(taken.path)):
                return name
        raise AssertionError("the last name has a number that is free")


def find_paths(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths that patterns name, in the order of the patterns; those of one pattern by the numbers in their names.

    Args:
        patterns: files, folders, globs, addresses, or "demo".

    Returns:
        The paths, each once, and the patterns that name nothing.
    """
    found: dict[str, None] = {}
    missing = []
    for pattern in patterns:
        paths = _matches(os.path.expanduser(pattern))
        if not paths:
            missing.append(pattern)
        found.update(dict.fromkeys(paths))
    return list(found), missing


def check_found(missing: Sequence[str]) -> None:
    """Raises ConfigurationError where patterns name nothing."""
    if missing:
        raise ConfigurationError(
            "\n".join(
                f"--models: {one}: there is no such file or folder{looked_up(one)}; expected a checkpoint, a pattern "
                "in quotes such as 'out/rwkv-*.pth', hf://owner/repo/file, or demo"
                for one in missing
            )
        )


def natural(text: str) -> list[Any]:
    """A key that sorts texts by the numbers in them: rwkv-2 before rwkv-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", text)]


def stamp_of(path: str) -> Stamp | None:
    """The stamp of a file, or of all files of a folder; None for what is no local path.

    Raises:
        OSError: there is nothing, or it cannot be read.
    """
    if _is_address(path):
        return None
    files = [path] if not os.path.isdir(path) else [entry.path for entry in os.scandir(path) if entry.is_file()]
    stats = [os.stat(file) for file in files]
    return sum(one.st_size for one in stats), max((one.st_mtime_ns for one in stats), default=0)


def _recorded(path: str) -> list[Checkpoint]:
    """The checkpoints of a file `models.json`; none where it is missing, or where a person has changed its form."""
    try:
        return [
            Checkpoint(entry["id"], entry["path"], entry["sha256"], None if not entry["stamp"] else (*entry["stamp"],))
            for entry in json.loads(Path(path).read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError):  # checksums are computed again
        return []


class Arrivals:
    """Tells which files are complete, while a training run writes them.

    A file is complete when its size and its time have not changed between two looks, or for the time of an interval,
    and when it opens as a checkpoint.

    Args:
        interval: seconds between two looks.
        say: shows a line.
    """

    def __init__(self, interval: float, say: Callable[[str], None]) -> None:
        self._interval = interval
        self._say = say
        self._seen: dict[str, Stamp | None] = {}
        self._told: dict[str, str] = {}

    def complete(self, paths: Sequence[str]) -> list[str]:
        """The paths that are complete."""
        return [path for path in paths if self._is_complete(path)]

    def _is_complete(self, path: str) -> bool:
        try:
            stamp = stamp_of(path)
        except OSError:  # it was removed meanwhile
            return False
        if stamp is not None:
            is_still = self._seen.get(path) == stamp or time.time() - stamp[1] / 1e9 > self._interval
            self._seen[path] = stamp
            if not is_still:
                return False
        if reason := _refusal(path):
            if self._told.get(path) != reason:
                self._say(f"{path}: not taken yet: {reason}")
            self._told[path] = reason
            return False
        return True


def _refusal(path: str) -> str:
    """Why a path does not open as a checkpoint; "" where it does."""
    from ..models.files.checkpoint import open_checkpoint  # imports torch

    if path == "demo":
        return ""
    try:
        open_checkpoint(path)
    except (RwkvBatchError, OSError) as error:
        return str(error)
    return ""


def _matches(pattern: str) -> list[str]:
    if _is_address(pattern):
        return [pattern]
    if os.path.exists(pattern):
        return [os.path.abspath(pattern)]
    return [os.path.abspath(path) for path in sorted(glob.glob(pattern, recursive=True), key=natural)]


def _is_address(path: str) -> bool:
    return "://" in path or path == "demo"


def _names(path: str) -> Iterator[str]:
    """Names for a checkpoint, from short to long, without end: with ever more of its folders, then with a number."""
    plain = path.partition("@")[0] if _is_address(path) else path
    *folders, last = [part for part in re.split(r"[/:]+", plain) if part] or ["model"]
    name = re.sub(r"\.(pth|pt|safetensors|st)$", "", last)
    for start in range(len(folders), -1, -1):
        yield _as_name("-".join([*folders[start:], name]))
    whole, number = _as_name("-".join([*folders, name])), 2
    while True:
        yield f"{whole}-{number}"
        number += 1


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", text).lstrip(".")[-100:] or "model"


def _sha256(path: str) -> str:
    """The checksum of the weights."""
    from ..model_summary import DEMO_MODEL
    from ..models.files.checkpoint import sha256_of_model  # imports torch

    return sha256_of_model(DEMO_MODEL if path == "demo" else path)
