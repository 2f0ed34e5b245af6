"""The storage of a job in an object store whose segments lie on this machine's disk."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

from ...kernel_support.cache import lasting_places
from .object_storage import ObjectStorage
from .storage import Appender, Data, LocalStorage

UNIT = "unit-"
"""The beginning of the names of folders that hold the segments of a unit."""
NAME_LETTERS = 40


def scratch_folder(state: str) -> str | None:
    """Returns the folder on this machine for segments of the job with this state folder. It need not exist.

    It is below the cache folder, which XDG_CACHE_HOME names. None where there is neither this variable nor a home.

    Args:
        state: an address in an object store.
    """
    name = f"{os.path.basename(state)[:NAME_LETTERS]}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    return next((str(place / name) for place in lasting_places("segments")), None)


class ScratchStorage:
    """Objects in a store, but segments in a scratch folder on this machine's disk.

    A segment keeps its address below the state folder as its name. It is looked for in both places, so a job may be
    resumed with another `run.segments`.

    Args:
        remote: of all files.
        state: the address of the state folder.
        scratch: the scratch folder.
        is_written: new segments are written to the scratch folder; False: to the store.
    """

    def __init__(self, remote: ObjectStorage, state: str, scratch: str, *, is_written: bool) -> None:
        self.remote = remote
        self._local = LocalStorage(os.path.join(scratch, "tmp"))
        self._units = f"{state}/{UNIT}"
        self._state = state
        self._scratch = scratch
        self._is_written = is_written

    def list(self, folder: str) -> list[str]:
        here = self._here(folder)
        found = self.remote.list(folder)
        return found if here is None else sorted({*found, *self._local.list(here)})

    def open(self, path: str) -> BinaryIO:
        here = self._here_if_there(path)
        return self.remote.open(path) if here is None else self._local.open(here)

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        here = self._here(path) if self._is_written else None
        if here is None:
            return self.remote.atomic_write(path, data, exclusive=exclusive)
        return self._local.atomic_write(here, data, exclusive=exclusive)

    def replace(self, path: str, data: bytes, old: bytes) -> bool:
        here = self._here_if_there(path)
        return self.remote.replace(path, data, old) if here is None else self._local.replace(here, data, old)

    def remove(self, path: str) -> None:
        here = self._here_if_there(path)
        if here is None:
            self.remote.remove(path)
        else:
            self._local.remove(here)

    def move(self, path: str, target: str) -> None:
        """A segment in the scratch folder is copied, and then removed."""
        if self._here_if_there(path) is None:
            self.remote.move(path, target)
            return
        with self.open(path) as file:
            self.atomic_write(target, file.read())
        self.remove(path)

    def appender(self, path: str) -> Appender:
        return self.remote.appender(path)

    def sweep(self) -> int:
        return self._local.sweep()

    def _here(self, path: str) -> str | None:
        """Returns where a segment or its folder lies in the scratch folder; None for every other file."""
        return self._scratch + path.removeprefix(self._state) if path.startswith(self._units) else None

    def _here_if_there(self, path: str) -> str | None:
        """Returns the path of a segment that is in the scratch folder; None for every other file."""
        here = self._here(path)
        return here if here is not None and os.path.exists(here) else None
