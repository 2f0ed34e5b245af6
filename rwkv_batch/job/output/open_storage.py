"""The storage of a job, chosen by where its folders are."""

from __future__ import annotations

import os
from typing import BinaryIO

from ...object_stores.urls import is_url
from .object_storage import ObjectStorage
from .scratch_storage import ScratchStorage
from .storage import Appender, Data, LocalStorage, Storage


def open_storage(output: str, state: str, scratch: str | None = None, *, is_scratch_written: bool = False) -> Storage:
    """Returns the storage of a job with these two folders. Reads and writes nothing.

    Args:
        output, state: absolute paths, or addresses in object stores. A local `output` has a local `state`.
        scratch: a folder on this machine where segments are looked for too, if `state` is in an object store.
        is_scratch_written: new segments are written there.

    Raises:
        MissingExtraError: a folder is in an object store, and obstore is missing.
    """
    if not is_url(output):
        return LocalStorage(os.path.join(state, "tmp"))
    if not is_url(state):
        return SplitStorage(LocalStorage(os.path.join(state, "tmp")), ObjectStorage())
    if scratch is None:
        return ObjectStorage()
    return ScratchStorage(ObjectStorage(), state, scratch, is_written=is_scratch_written)


class SplitStorage:
    """Files on a local disk, and objects in stores: a state folder here, an output folder there.

    Args:
        local: of paths.
        remote: of addresses.
    """

    def __init__(self, local: LocalStorage, remote: ObjectStorage) -> None:
        self._local = local
        self.remote = remote

    def list(self, folder: str) -> list[str]:
        return self._of(folder).list(folder)

    def open(self, path: str) -> BinaryIO:
        return self._of(path).open(path)

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        return self._of(path).atomic_write(path, data, exclusive=exclusive)

    def replace(self, path: str, data: bytes, old: bytes) -> bool:
        return self._of(path).replace(path, data, old)

    def remove(self, path: str) -> None:
        self._of(path).remove(path)

    def move(self, path: str, target: str) -> None:
        """Between the disk and a store a file is copied, and then removed."""
        if self._of(path) is self._of(target):
            self._of(path).move(path, target)
            return
        with self.open(path) as file:
            self.atomic_write(target, file.read())
        self.remove(path)

    def appender(self, path: str) -> Appender:
        return self._of(path).appender(path)

    def sweep(self) -> int:
        return self._local.sweep()

    def _of(self, path: str) -> Storage:
        return self.remote if is_url(path) else self._local


def remote_part(storage: Storage) -> ObjectStorage | None:
    """Returns the part of a storage that is in object stores, if there is one."""
    if isinstance(storage, (SplitStorage, ScratchStorage)):
        return storage.remote
    return storage if isinstance(storage, ObjectStorage) else None
