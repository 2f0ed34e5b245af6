"""The storage of a job's files: a file appears whole or not at all, and survives a power cut."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Protocol, TypeAlias

import pyarrow as pa

logger = logging.getLogger(__name__)

Data: TypeAlias = bytes | pa.Buffer

ADVICE = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "the quota is used up: make room, or have it raised",
    errno.EROFS: "the file system is read-only: mount it for writing, or choose another output.path",
    errno.EACCES: "this user may not write there: change the permissions, or choose another output.path",
    errno.EPERM: "this user may not write there: change the permissions, or choose another output.path",
    errno.ENAMETOOLONG: "choose a shorter output.path",
    errno.EIO: "the disk reports a failure: see the system's log",
    errno.ESTALE: "the server of this network file system has lost it: mount it again",
}
"""Error number → what to do."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
"""Errors of file systems that have no hard links."""
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR}
"""Errors of file systems that cannot sync a folder."""


class StorageError(OSError):
    """A file or a folder cannot be read or written. The text is a sentence with its path and with what to do."""

    def __init__(self, path: str, verb: str, error: OSError, advice: str | None = None) -> None:
        super().__init__(error.errno, error.strerror, path)
        self._arguments = path, verb, OSError(error.errno, error.strerror), advice
        reason = error.strerror or str(error)
        advice = advice or ADVICE.get(error.errno or 0)
        self._text = "; ".join(filter(None, (f"{path} cannot be {verb}: {reason}", advice)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come from workers in other processes: the constructor takes other arguments than `args`."""
        return StorageError, self._arguments

    def __str__(self) -> str:
        return self._text


@contextmanager
def _named(path: str, verb: str) -> Iterator[None]:
    """Gives errors inside a sentence with the path. A file that is missing stays a FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, StorageError):
        raise
    except OSError as error:
        raise StorageError(path, verb, error) from error


class Appender(Protocol):
    """Appends lines to a file. A line is one argument, with its end."""

    def __call__(self, line: str, *, is_urgent: bool) -> None:
        """Appends a line. One that is not urgent may be written with a later one."""


class Storage(Protocol):
    """The operations that the commit protocol needs.

    `LocalStorage` offers them on a local disk, `rwkv_batch.job.output.object_storage.ObjectStorage` in object stores.
    """

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

    def replace(self, path: str, data: bytes, old: bytes) -> bool:
        """Writes `data` as `atomic_write` does, if the content of the file is `old`. Of several callers, one does.

        A file system without locks, and a store that does not honour the condition, do not keep a second one from it.

        Args:
            data: differs from what any other process writes there.

        Returns:
            Whether the file has this content now; False where it has another one, or is not there.

        Raises:
            OSError: as `atomic_write`.
        """

    def remove(self, path: str) -> None:
        """Removes a file, and its folder if that is empty then. A file that is not there is no error."""

    def move(self, path: str, target: str) -> None:
        """Gives a file another name, in one step. Raises FileNotFoundError where the file is not there."""

    def appender(self, path: str) -> Appender:
        """Returns what appends lines to a file."""

    def sweep(self) -> int:
        """Removes what processes that died have left half written, and returns the number of files."""


class LocalStorage:
    """A POSIX file system: temporary file, fsync, rename, fsync of the folder.

    It also serves file systems without locks, hard links or a sync of folders, and those that list a new file late,
    such as NFS: `list` gives what this object has written, listed or not.

    The folder that holds `temporary_folder` is the state folder. It is made for its user alone, and what is made inside
    has its permissions. All other files and folders have those of the umask.

    Args:
        temporary_folder: where files are written before they get their name; on the file system of all of them.
    """

    def __init__(self, temporary_folder: str) -> None:
        self.temporary_folder = temporary_folder
        self._private = os.path.dirname(os.path.abspath(temporary_folder))
        self._written: defaultdict[str, set[str]] = defaultdict(set)
        self._told: set[str] = set()

    def list(self, folder: str) -> list[str]:
        with _named(folder, "read"):
            try:
                found = os.listdir(folder)
            except FileNotFoundError:
                found = []
        missing = [name for name in self._written[folder].difference(found) if self._is_there(folder, name)]
        return sorted([*found, *missing])

    def open(self, path: str) -> BinaryIO:
        with _named(path, "read"):
            return open(path, "rb")

    def atomic_write(self, path: str, data: Data, *, exclusive: bool = False) -> bool:
        folder, name = os.path.split(path)
        temporary = os.path.join(self.temporary_folder, f"{name}.{uuid.uuid4().hex}.tmp")
        with _named(path, "written"):
            file = self._create_locked(temporary)
            try:
                with file:
                    self._write(file, data)
                    if self._is_private(path):
                        with suppress(OSError):  # a file system without permissions
                            os.fchmod(file.fileno(), self._private_mode() & 0o666)
                    if not self._rename(temporary, path, exclusive):
                        return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            self._sync_folder(folder)
        self._written[folder].add(name)
        return True

    def replace(self, path: str, data: bytes, old: bytes) -> bool:
        with _named(path, "written"), suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process replaces it at the moment
                raise
            except OSError:  # a file system without locks
                pass
            with open(path, "rb") as now:  # the file of this name may have been replaced before the lock was given
                is_same = os.path.sameopenfile(file.fileno(), now.fileno())
            return is_same and file.read() == old and self.atomic_write(path, data)
        return False

    def remove(self, path: str) -> None:
        folder, name = os.path.split(path)
        self._written[folder].discard(name)
        with _named(path, "removed"), suppress(FileNotFoundError):
            os.unlink(path)
        with suppress(OSError):
            os.rmdir(folder)

    def move(self, path: str, target: str) -> None:
        folder, name = os.path.split(path)
        with _named(path, "moved"):
            self.make_folder(os.path.dirname(target))
            os.replace(path, target)
            self._sync_folder(os.path.dirname(target))
            self._sync_folder(folder)
        self._written[folder].discard(name)

    def appender(self, path: str) -> Appender:
        return _FileAppender(path)

    def make_folder(self, folder: str) -> None:
        """Creates `folder` and the missing folders above it, durably."""
        if os.path.isdir(folder):
            return
        parent = os.path.dirname(os.path.abspath(folder))
        self.make_folder(parent)
        with _named(folder, "made"), suppress(FileExistsError):
            if self._is_private(folder):
                mode = self._private_mode()
                os.mkdir(folder, mode)
                with suppress(OSError):  # a file system without permissions
                    inherited = os.stat(folder).st_mode & stat.S_ISGID
                    os.chmod(folder, inherited | mode)  # also what the umask takes away
            else:
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
        move = self._move_to_free_name if exclusive else os.replace
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

    def _move_to_free_name(self, temporary: str, path: str) -> None:
        """Gives the temporary file a name that no file has. Raises FileExistsError where one has it."""
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._tell("no hard links", path, error, "of two runs that start at the same moment, one may be refused")
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # one process alone gets the name
            try:
                os.replace(temporary, path)
            except BaseException:
                os.unlink(path)
                raise

    def _sync_folder(self, folder: str) -> None:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process has removed it with everything in it: nothing to keep
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise
            self._tell("no sync of folders", folder, error, "a power cut may undo the last seconds")
        finally:
            os.close(descriptor)

    def _tell(self, what: str, path: str, error: OSError, effect: str) -> None:
        """Logs once what the file system lacks."""
        if what not in self._told:
            self._told.add(what)
            logger.warning(
                "%s: this file system has %s (%s); the job goes on, but %s", path, what, error.strerror, effect
            )

    def _is_there(self, folder: str, name: str) -> bool:
        """Whether a file that this object has written, and that is not listed, can be opened. If not, forgets it."""
        try:
            os.close(os.open(os.path.join(folder, name), os.O_RDONLY))
        except OSError:
            self._written[folder].discard(name)
            return False
        return True

    def _is_private(self, path: str) -> bool:
        return os.path.commonpath([self._private, os.path.abspath(path)]) == self._private

    def _private_mode(self) -> int:
        return private_mode(self._private)


class _FileAppender:
    """Appends lines to a local file, which is made with the permissions of its folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, line: str, *, is_urgent: bool) -> None:
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace", opener=self._create) as file:
            file.write(line)

    def _create(self, path: str, flags: int) -> int:
        return os.open(path, flags, private_mode(os.path.dirname(path)) & 0o666)


def private_mode(state_folder: str) -> int:
    """The permissions of folders inside a state folder: its own, or those of its user alone while there is none."""
    try:
        return stat.S_IMODE(os.stat(state_folder).st_mode) & 0o777
    except OSError:
        return 0o700
