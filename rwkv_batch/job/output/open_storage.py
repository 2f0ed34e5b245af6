"""The storage of a job, chosen by where its folders are."""

from __future__ import annotations

import os
from typing import BinaryIO

from .object_storage import ObjectStorage
from .storage import Appender, Data, LocalStorage, Storage
from .urls import is_url


def open_storage(output: str, state: str) -> Storage:
    """Returns the storage of a job with these two folders. Reads and writes nothing.

    Args:
        output, state: absolute paths, or addresses in object stores. A local `output` has a local `state`.

    Raises:
        MissingExtraError: a folder is in an object store, and obstore is missing.
    """
    if not is_url(output):
        return LocalStorage(os.path.join(state, "tmp"))
    return ObjectStorage() if is_url(state) else SplitStorage(LocalStorage(os.path.join(state, "tmp")), ObjectStorage())


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
    if isinstance(storage, SplitStorage):
        return storage.remote
    return storage if isinstance(storage, ObjectStorage) else None
