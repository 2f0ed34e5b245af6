"""The storage of a job's files: a file appears whole or not at all, and survives a power cut."""

from __future__ import annotations

import fcntl
import os
import uuid
from contextlib import suppress
from typing import BinaryIO, Protocol, TypeAlias

import pyarrow as pa

Data: TypeAlias = bytes | pa.Buffer


class Storage(Protocol):
    """The operations that the commit protocol needs. `LocalStorage` offers them on a local disk."""

    def list(self, folder: str) -> list[str]:
        """Returns the names in `folder`, sorted; none where there is no such folder."""

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading at any position. Raises FileNotFoundError."""

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        """Writes `data` to the file `path` durably, in one step: other processes see all of it or nothing.

        Args:
            exclusive: leave a file that exists as it is.

        Returns:
            False where `exclusive` is set and the file existed.

        Raises:
            OSError: the data did not reach the disk; nothing has changed under `path`.
        """

    def remove(self, path: str) -> None:
        """Removes a file, and its folder if that is empty then. A file that is not there is no error."""

    def move(self, path: str, target: str) -> None:
        """Gives a file another name, in one step. Raises FileNotFoundError where the file is not there."""


class LocalStorage:
    """A POSIX file system: temporary file, fsync, rename, fsync of the folder.

    Args:
        temporary_folder: where files are written before they get their name; on the file system of all of them.
    """

    def __init__(self, temporary_folder: str) -> None:
        self.temporary_folder = temporary_folder

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb")

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        temporary = os.path.join(self.temporary_folder, f"{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
        file = self._create_locked(temporary)
        try:
            with file:
                self._write(file, data)
                if not self._rename(temporary, path, exclusive):
                    return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        self._sync_folder(os.path.dirname(path))
        return True

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with suppress(OSError):
            os.rmdir(os.path.dirname(path))

    def move(self, path: str, target: str) -> None:
        self.make_folder(os.path.dirname(target))
        os.replace(path, target)
        self._sync_folder(os.path.dirname(target))
        self._sync_folder(os.path.dirname(path))

    def make_folder(self, folder: str) -> None:
        """Creates `folder` and the missing folders above it, durably."""
        if os.path.isdir(folder):
            return
        parent = os.path.dirname(os.path.abspath(folder))
        self.make_folder(parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        self._sync_folder(parent)

    def sweep(self) -> int:
        """Removes the temporary files of processes that died, and returns their number."""
        swept = 0
        for name in self.list(self.temporary_folder):
            path = os.path.join(self.temporary_folder, name)
            with suppress(OSError), open(path, "rb") as file:
                # A living writer holds this lock; the system releases it when the process ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                swept += 1
        return swept

    def _create_locked(self, path: str) -> BinaryIO:
        """Creates a temporary file and locks it, so that `sweep` of another process leaves it alone."""
        self.make_folder(self.temporary_folder)
        while True:
            file = open(path, "xb")  # noqa: SIM115 - the caller closes it, and with it gives up the lock
            with suppress(OSError):  # a file system without locks: nothing is ever swept there
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # swept between its creation and its lock

    def _write(self, file: BinaryIO, data: Data) -> None:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    def _rename(self, temporary: str, path: str, exclusive: bool) -> bool:
        """Gives the temporary file its name. Returns False where `exclusive` is set and the name is taken."""
        move = os.link if exclusive else os.replace
        while True:
            try:
                move(temporary, path)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:  # no such folder yet, or another process has just removed the emptied one
                if not os.path.exists(temporary):
                    raise
                self.make_folder(os.path.dirname(path))

    def _sync_folder(self, folder: str) -> None:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process has removed it with everything in it: nothing to keep
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
