"""The version of an input file: a later read of the file must find the content that the job began with.

Two texts describe a file. Its **stamp** is what the file system says of it: inode, size and times of a local file, size
and time of a remote object. A stamp costs no read of the content. Its **version** is the SHA-256 of the whole content,
and for a remote object that has a time, that time. job.json records both. A file with the recorded stamp is unchanged.
A file with another stamp, such as one that was copied to another machine, is unchanged if it has the recorded version.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from ...checksum import sha256_of
from ...errors import ResumeError

logger = logging.getLogger(__name__)

CONTENT, FOOTER, MODIFIED = "sha256:", "footer-sha256:", "modified:"
"""Beginnings of versions. Earlier releases recorded the SHA-256 of the footer of a Parquet file."""
SETTLED_NS = 2 * 10**9
"""Age in nanoseconds at which a file's time tells every later change: some file systems count in steps of 2 s."""
LONG_BYTES = 4 << 30
"""A file of this size is announced before its content is read for its version."""

Batch = TypeVar("Batch")


class FileVersion:
    """The check that a file stays what it was when it was first opened.

    Args:
        name: the file's absolute path or URL, for people.
        path: its path in `filesystem`.
        filesystem: of pyarrow.

    Attributes:
        recorded: the version in job.json; None where there is no job.json yet.
    """

    def __init__(self, name: str, path: str, filesystem: Any) -> None:
        self._name, self._path, self._filesystem = name, path, filesystem
        self._stamp, self._modified_ns = self._look()
        self._content: tuple[str, str] | None = None
        self.recorded: str | None = None

    def record(self) -> dict[str, Any]:
        """Returns what job.json keeps of the file: "version" and "stamp".

        The stamp is None where a change in the next moment could leave it as it is.
        """
        has_time = self._modified_ns is not None and not isinstance(self._filesystem, fs.LocalFileSystem)
        version = self._current(MODIFIED if has_time else CONTENT)
        is_settled = self._modified_ns is None or self._modified_ns < time.time_ns() - SETTLED_NS
        return {"version": version, "stamp": self._stamp if is_settled else None}

    def differs(self, version: str | None, stamp: str | None) -> str | None:
        """Compares the file with what job.json recorded, and takes that as `recorded`.

        Args:
            version: None where the job reads no row of the file.

        Returns:
            The file's version where it is another one; None where the file is unchanged.
        """
        self.recorded = version
        if version is None or (stamp is not None and stamp == self._stamp):
            return None
        found = self._current(version)
        return None if found == version else found

    @property
    def is_weak(self) -> bool:
        """Whether the recorded version leaves out a part of the content."""
        return self.recorded is not None and self.recorded.startswith(FOOTER)

    def check(self) -> None:
        """Raises ResumeError where the file is no longer what it was when it was first opened."""
        stamp, modified_ns = self._look()
        if stamp == self._stamp:
            return
        known = self.recorded
        if known is None or not known.startswith(CONTENT) or self._content_at(stamp) != known:
            raise ResumeError(
                f"the input changed while the job ran: {self._name}\nWhat is committed belongs to the file as it was: "
                "put it back and start the same command again, or start over with another output.path"
            )
        self._stamp, self._modified_ns = stamp, modified_ns

    def checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields batches of the file's rows; each was read before any change of the file.

        Raises:
            ResumeError: the file has changed. An error that the change has led to is replaced.
        """
        try:
            for batch in batches:
                self.check()
                yield batch
        except (OSError, pa.ArrowException):
            self.check()
            raise

    def _current(self, kind: str) -> str:
        """The file's present version, of the kind of a recorded one; "" where the kind is not known."""
        if kind.startswith(MODIFIED):
            return f"{MODIFIED}{self._modified_ns or 0}"
        if kind.startswith(FOOTER):
            return FOOTER + self._footer_hash()
        return self._content_at(self._stamp) if kind.startswith(CONTENT) else ""

    def _content_at(self, stamp: str) -> str:
        """The version of the file's content while it has this stamp.

        Raises:
            ResumeError: the file changes while it is read.
        """
        if self._content is None or self._content[0] != stamp:
            content = CONTENT + self._content_hash()
            if self._look()[0] != stamp:
                raise ResumeError(f"{self._name} changes while it is read; start the job when the file is complete")
            self._content = stamp, content
        return self._content[1]

    def _content_hash(self) -> str:
        with open_path(self._filesystem, self._path) as file:
            if (size := file.size()) >= LONG_BYTES:
                logger.info("%s: reading %.1f GB once for the checksum of its content", self._name, size / 1e9)
            return sha256_of(file)

    def _footer_hash(self) -> str:
        """The SHA-256 of a Parquet file's footer; of no text where the file is too short to have one."""
        with open_path(self._filesystem, self._path) as file:
            size = file.size()
            file.seek(max(0, size - 8))
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(0, size - 8 - length))
            return sha256_of(file)

    def _look(self) -> tuple[str, int | None]:
        """The file's stamp, and the time of its last change in nanoseconds since 1970 where the file system has one.

        Raises:
            ResumeError: the file is gone.
        """
        try:
            if isinstance(self._filesystem, fs.LocalFileSystem):
                found = os.stat(self._path)
                stamp = f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
                return stamp, max(found.st_mtime_ns, found.st_ctime_ns)
            info = self._filesystem.get_file_info(self._path)
            if info.type != fs.FileType.NotFound:
                modified_ns = info.mtime_ns or self._modified_in_fsspec()
                return f"{info.size}:{modified_ns or self._key_in_fsspec()}", modified_ns
        except FileNotFoundError:
            pass
        raise ResumeError(
            f"{self._name} is gone; what is committed is safe: put the file back and start the same command again"
        )

    def _modified_in_fsspec(self) -> int | None:
        """The time of a file's last change in nanoseconds, where a file system of fsspec tells it."""
        remote = _fsspec(self._filesystem)
        try:
            return None if remote is None else int(remote.modified(self._path).timestamp() * 1e9)
        except (NotImplementedError, AttributeError, KeyError):
            return None

    def _key_in_fsspec(self) -> str:
        """A text that changes with what a file system of fsspec says of a file, such as an ETag."""
        remote = _fsspec(self._filesystem)
        return "" if remote is None else str(remote.ukey(self._path))


def _fsspec(filesystem: Any) -> Any:
    """The file system of fsspec inside one of pyarrow, without what it has kept of earlier answers; None in others."""
    handler = getattr(filesystem, "handler", None)
    if not isinstance(handler, fs.FSSpecHandler):
        return None
    handler.fs.invalidate_cache()
    return handler.fs


def open_path(filesystem: Any, path: str) -> Any:
    """Opens a file for reading, as a binary file of pyarrow. A local path whose bytes are not UTF-8 has surrogates."""
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    return filesystem.open_input_file(os.fsencode(path) if is_local else path)
