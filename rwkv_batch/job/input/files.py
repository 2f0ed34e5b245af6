"""The search for a job's input files: paths, folders, globs and URLs become a sorted list of files."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

from pyarrow import fs

from ...errors import ConfigurationError, looked_up
from .glob import Glob, split_glob
from .hive import partition_of
from .lakes import refuse_lakes
from .listing import Entry, entries
from .version import FileVersion, open_path

COMPRESSED = (".gz", ".zst", ".bz2")
"""Ends of names of compressed files, after the end that tells the format."""

WEAK_EXTENSIONS = (".json",)
"""Extensions of files that often lie beside data. In a folder with files of other extensions they are not input."""

NATIVE_SCHEMES = ("s3", "gs", "gcs", "abfs", "hdfs")


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Args:
        name: its absolute path or URL, for people. Bytes that are not UTF-8 are written \\xe9.
        path: its path in `filesystem`.
        filesystem: of pyarrow.
        size: in bytes.
        mtime_ns: time of the last change in nanoseconds since 1970; 0 where the file system has none.
        partition: values of the Hive folders above it, as text, by column.
    """

    name: str
    path: str
    filesystem: Any
    size: int
    mtime_ns: int
    partition: Mapping[str, str | None] = field(default_factory=dict)

    def open(self) -> Any:
        """Opens the file for reading, as a binary file of pyarrow. Raises ResumeError where it has changed."""
        self.version.check()
        return open_path(self.filesystem, self.path)

    @property
    def identity(self) -> str:
        """What two paths to one file have in common: the path without links, or the URL."""
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        return os.path.realpath(self.path) if is_local else self.name

    @property
    def extension(self) -> str:
        """The end of the name with its dot, in lower case, such as ".jsonl"; without that of a compression."""
        return extension_of(self.path)

    @cached_property
    def version(self) -> FileVersion:
        """What tells whether the file is still what it was when it was first opened."""
        return FileVersion(self.name, self.path, self.filesystem)


def extension_of(path: str) -> str:
    """Returns the end of a file's name with its dot, in lower case; without that of a compression."""
    stem, extension = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] if extension in COMPRESSED else extension


def find_files(paths: str | Sequence[str], extensions: Collection[str]) -> list[InputFile]:
    """Returns the files that `input.path` means, sorted by name, each once, also where links lead to it.

    Args:
        paths: files, folders, globs or URLs.
        extensions: ends of the names of those of a folder's files that are meant, such as ".jsonl".

    Raises:
        ConfigurationError: a path names nothing or a Delta, Hudi or Iceberg table, or its file system cannot be
            reached.
    """
    found: dict[str, InputFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            matches = _expand(path, extensions)
        except ConfigurationError:
            raise
        except Exception as error:  # file systems raise exceptions of many classes
            raise ConfigurationError(f"input.path: cannot read {path!r}: {error}") from error
        if not matches:
            raise ConfigurationError(
                f"input.path: got {path!r}{looked_up(path)}, expected an existing file, folder or glob with files in it"
            )
        for file in matches:
            identity = file.identity
            known = found.setdefault(identity, file)
            found[identity] = min(known, file, key=lambda one: (one.name != identity, one.name))
    return sorted(found.values(), key=lambda file: file.name)


def would_be_read(paths: str | Sequence[str], path: str) -> bool:
    """Whether a file created at `path`, which is local or an address, would become a part of the input."""

    def is_url(name: str) -> bool:
        return "://" in name and not name.startswith("file://")

    target = path if is_url(path) else os.path.realpath(path)
    for item in [paths] if isinstance(paths, str) else paths:
        if is_url(item) != is_url(path):
            continue
        base, pattern = split_glob(item.removeprefix("file://"))
        root = os.path.join(base.rstrip("/") if is_url(base) else os.path.realpath(base), "")
        if target.startswith(root) and (pattern is None or pattern.matches(target[len(root) :])):
            return True
    return False


def _expand(path: str, extensions: Collection[str]) -> list[InputFile]:
    """Returns the files that one path, folder, glob or URL means."""
    filesystem, inner, prefix = _filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [_file(filesystem, Entry(info.path, info.size, info.mtime_ns or 0), prefix, os.path.dirname(inner))]
    base, pattern = (inner, None) if info.type == fs.FileType.Directory else split_glob(inner)
    if info.type == fs.FileType.NotFound and pattern is None:
        return []
    listing = entries(filesystem, base)
    root = base.rstrip("/") + "/"
    chosen = [
        entry
        for entry in listing
        if entry.size is not None and _is_chosen(entry.path.removeprefix(root), pattern, extensions)
    ]
    if pattern is None:
        chosen = [entry for entry in chosen if extension_of(entry.path) not in WEAK_EXTENSIONS] or chosen
    refuse_lakes(filesystem, base, [entry.path for entry in listing], [entry.path for entry in chosen])
    for entry in chosen:
        if entry.is_missing:
            raise FileNotFoundError(errno.ENOENT, "a link to a file that is not there", entry.path)
    return [_file(filesystem, entry, prefix, base) for entry in chosen]


def _is_chosen(name: str, pattern: Glob | None, extensions: Collection[str]) -> bool:
    """Whether a file is input. A glob decides alone; in a folder, private files and other extensions are left out."""
    pieces = name.split("/")
    if any(piece.startswith(".") for piece in pieces):
        return False
    if pattern is not None:
        return pattern.matches(name)
    is_private = any(piece.startswith("_") and "=" not in piece for piece in pieces)
    return not is_private and extension_of(name) in extensions


def _file(filesystem: Any, entry: Entry, prefix: str, base: str) -> InputFile:
    """Returns a file that was found in the folder `base`, or below it."""
    name = os.fsencode(entry.path).decode(errors="backslashreplace")
    folders = [*takewhile(lambda folder: "=" in folder, reversed(base.split("/")))][::-1]
    folders += os.path.dirname(name.removeprefix(base)).split("/")
    return InputFile(prefix + name, entry.path, filesystem, entry.size or 0, entry.mtime_ns, partition_of(folders))


def _filesystem(path: str) -> tuple[Any, str, str]:
    """Returns the file system of a path or URL, the path inside it, and the prefix of such paths for people."""
    scheme, separator, rest = path.partition("://")
    if not separator or scheme == "file":
        return fs.LocalFileSystem(), os.path.abspath(rest if separator else path), ""
    if scheme in NATIVE_SCHEMES:
        inner, _, query = rest.partition("?")
        bucket = inner.partition("/")[0]
        filesystem, _ = fs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))
        return filesystem, inner, f"{scheme}://"
    import fsspec

    remote, inner = fsspec.core.url_to_fs(path)
    return fs.PyFileSystem(fs.FSSpecHandler(remote)), inner, f"{scheme}://"
