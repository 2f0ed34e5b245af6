"""The content of a folder, of any file system."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyarrow import fs


class Entry(NamedTuple):
    """A file or a folder.

    Args:
        path: in its file system. A local path whose bytes are not UTF-8 has surrogates.
        size: of a file in bytes; None for a folder.
        mtime_ns: time of the last change in nanoseconds since 1970; 0 where the file system has none.
        is_missing: the path is a link to a file that is not there.
    """

    path: str
    size: int | None = None
    mtime_ns: int = 0
    is_missing: bool = False


def entries(filesystem: Any, folder: str) -> list[Entry]:
    """Returns all files and folders below a folder; none where there is no such folder.

    Links to files and folders are followed, but for links to a folder that holds the link. Local folders whose name
    begins with a dot are not looked into.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        return [*_local_entries(folder)] if os.path.isdir(folder) else []
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    return [Entry(info.path, info.size if info.is_file else None, info.mtime_ns or 0) for info in infos]


def _local_entries(folder: str) -> Iterator[Entry]:
    pending = [(folder, frozenset([_identity(os.stat(folder))]))]
    while pending:
        parent, above = pending.pop()
        with os.scandir(parent) as found:
            for item in found:
                try:
                    status = item.stat()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    yield Entry(item.path, 0, is_missing=True)
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield Entry(item.path, status.st_size, status.st_mtime_ns)
                elif stat.S_ISDIR(status.st_mode) and _identity(status) not in above:
                    yield Entry(item.path)
                    if not item.name.startswith("."):
                        pending.append((item.path, above | {_identity(status)}))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
