"""Folders that keep files between processes, most of all compiled kernels, and the lock under which one process makes
them.

Three places are tried, in this order: `$XDG_CACHE_HOME/rwkv_batch`, `~/.cache/rwkv_batch`, and a folder of this user
among temporary files. A compiled kernel is code, so it is loaded only from a folder that no other user can write to.
What is there is loaded from a folder that is read-only, and without the lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_SECONDS = 600.0
"""The longest time that a process waits for another one's build."""
POLL_SECONDS = 0.1


def places(name: str) -> Iterator[Path]:
    """Yields the folders in which compiled kernels of this name may lie, the best one first. They need not exist."""
    yield from lasting_places(name)
    with suppress(OSError):  # no folder for temporary files
        yield Path(tempfile.gettempdir(), f"rwkv_batch-{os.geteuid()}-{name}")


def lasting_places(name: str) -> Iterator[Path]:
    """Yields the folders of this name that a restart of the machine leaves, the best one first. They need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, says the specification of this variable
        yield Path(base, "rwkv_batch", name)
    with suppress(RuntimeError):  # no variable HOME, and a user without an entry in passwd
        yield Path.home() / ".cache" / "rwkv_batch" / name


def kept(name: str, pattern: str) -> Iterator[Path]:
    """Yields the files of this name that may be loaded, the best place first.

    Args:
        name: of the folder.
        pattern: a file name, perhaps with wildcards.
    """
    for place in places(name):
        with suppress(OSError):
            if _is_safe(place):
                yield from sorted(place.glob(pattern))


def private_folders(name: str, *, for_libraries: bool = False) -> Iterator[Path]:
    """Yields the folders of this name in which files can be kept, the best one first; makes those that are missing.

    Args:
        for_libraries: leave out file systems from which no library can be loaded.

    Raises:
        OSError: there is no such folder; the message says why, for each place.
    """
    refused: list[str] = []
    is_found = False
    for place in places(name):
        try:
            _make_private(place)
            if for_libraries and os.statvfs(place).f_flag & os.ST_NOEXEC:
                raise OSError(f"no library can be loaded from {place}, which is mounted with noexec")
        except OSError as error:
            refused.append(str(error))
            continue
        is_found = True
        yield place
    if not is_found:
        raise OSError(f"no folder to keep files in: {'; '.join(refused) or 'no home and no temporary folder'}")


def private_folder(name: str) -> Path:
    """The best of `private_folders`."""
    return next(private_folders(name))


@contextmanager
def one_at_a_time(path: Path, work: str = "builds kernels", longest: float | None = None) -> Iterator[None]:
    """A lock: of all processes and threads that use the same file, one at a time runs the block.

    Two cases are no reason to fail: the lock is held for too long, or the file system has no locks. The block then runs
    without the lock. A file that the block makes must therefore appear in one step.

    Args:
        path: of the lock file, which stays. The lock ends with its process.
        work: what a process does that holds the lock, for those that wait.
        longest: the longest time to wait, in seconds; None is `LOCK_SECONDS`.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        _lock(descriptor, path, work, LOCK_SECONDS if longest is None else longest)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, work: str, longest: float) -> None:
    """Waits for the lock, at most `longest` seconds; not at all where the file system has no locks."""
    start = time.monotonic()
    is_told = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP
            return None
        if not is_told:
            logger.warning("waiting for another process that %s (it holds %s)", work, path)
            is_told = True
        if time.monotonic() - start > longest:
            logger.warning("%s has been held for %.0f s; going on without it", path, longest)
            return None
        time.sleep(POLL_SECONDS)


def _is_safe(folder: Path) -> bool:
    """Whether only this user, or root, can put files into the folder. Raises OSError where there is none."""
    info = folder.lstat()  # a link is writable for all, and so not safe: another user may have made it in /tmp
    return info.st_uid in (os.geteuid(), 0) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _make_private(folder: Path) -> None:
    """Makes the folder if it is missing, and lets only this user read and write it.

    Raises:
        OSError: it belongs to another user, cannot be made, or cannot be written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(f"{folder} is a link, expected a folder")
    if info.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    if stat.S_IMODE(info.st_mode) != 0o700:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written to")
