"""The search for a job's input files: paths, folders, globs and URLs become a sorted list of files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from ...errors import ConfigurationError, looked_up

NATIVE_SCHEMES = ("s3", "gs", "gcs", "abfs", "hdfs")


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Args:
        name: its absolute path or URL, for people.
        path: its path in `filesystem`.
        filesystem: of pyarrow.
        size: in bytes.
        mtime_ns: time of the last change in nanoseconds since 1970; 0 where the file system has none.
    """

    name: str
    path: str
    filesystem: Any
    size: int
    mtime_ns: int

    def open(self) -> Any:
        """Opens the file for reading, as a binary file of pyarrow."""
        return self.filesystem.open_input_file(self.path)

    @property
    def extension(self) -> str:
        """The end of the name with its dot, in lower case, such as ".jsonl"."""
        return os.path.splitext(self.path)[1].lower()

    def version(self) -> str:
        """Returns a text that changes when the content changes: the upload time of a remote object, else a checksum.

        A Parquet file may be large; its version is the checksum of its footer, which has sizes and statistics of all
        columns.
        """
        if self.mtime_ns and not isinstance(self.filesystem, fs.LocalFileSystem):
            return f"modified:{self.mtime_ns}"
        with self.open() as file:
            file.seek(max(0, self.size - 8))
            length, magic = file.read(4), file.read(4)
            if magic != b"PAR1":
                file.seek(0)
                return f"sha256:{sha256_of(file)}"
            file.seek(self.size - 8 - int.from_bytes(length, "little"))
            return f"footer-sha256:{sha256_of(file)}"


def sha256_of(file: Any) -> str:
    """Returns the SHA-256, in hexadecimal, of an open binary file from its position on."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def find_files(paths: str | Sequence[str], extensions: Collection[str]) -> list[InputFile]:
    """Returns the files that `input.path` means, sorted by name, each once.

    Args:
        paths: files, folders, globs or URLs.
        extensions: ends of the names of those of a folder's files that are meant, such as ".jsonl".

    Raises:
        ConfigurationError: a path names nothing, or its file system cannot be reached.
    """
    found: dict[str, InputFile] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            matches = _expand(path, extensions)
        except Exception as error:  # file systems raise exceptions of many classes
            raise ConfigurationError(f"input.path: cannot read {path!r}: {error}") from error
        if not matches:
            raise ConfigurationError(
                f"input.path: got {path!r}{looked_up(path)}, expected an existing file, folder or glob with files in it"
            )
        found.update((file.name, file) for file in matches)
    return [found[name] for name in sorted(found)]


def would_be_read(paths: str | Sequence[str], path: str) -> bool:
    """Whether a file created at the local `path` would become a part of the input."""
    target = os.path.realpath(path)
    for item in [paths] if isinstance(paths, str) else paths:
        if "://" in item and not item.startswith("file://"):
            continue
        base, pattern = _split_glob(item.removeprefix("file://"))
        root = os.path.join(os.path.realpath(base), "")
        if target.startswith(root) and (pattern is None or pattern.fullmatch(target[len(root) :])):
            return True
    return False


def _expand(path: str, extensions: Collection[str]) -> list[InputFile]:
    """Returns the files that one path, folder, glob or URL means."""
    filesystem, inner, prefix = _filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.File:
        return [_file(filesystem, info, prefix)]
    base, pattern = (inner, None) if info.type == fs.FileType.Directory else _split_glob(inner)
    if info.type == fs.FileType.NotFound and pattern is None:
        return []
    infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    root = base.rstrip("/") + "/"
    names = {info.path: info.path.removeprefix(root) for info in infos if info.type == fs.FileType.File}
    chosen = [info for info in infos if info.path in names and _is_chosen(names[info.path], pattern, extensions)]
    return [_file(filesystem, info, prefix) for info in chosen]


def _is_chosen(name: str, pattern: re.Pattern[str] | None, extensions: Collection[str]) -> bool:
    """Whether a file is input. A glob decides alone; in a folder, private files and other extensions are left out."""
    pieces = name.split("/")
    if any(piece.startswith(".") for piece in pieces):
        return False
    if pattern is not None:
        return pattern.fullmatch(name) is not None
    is_private = any(piece.startswith("_") for piece in pieces)
    return not is_private and os.path.splitext(name)[1].lower() in extensions


def _file(filesystem: Any, info: Any, prefix: str) -> InputFile:
    return InputFile(prefix + info.path, info.path, filesystem, info.size, info.mtime_ns or 0)


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


def _split_glob(path: str) -> tuple[str, re.Pattern[str] | None]:
    """Returns the folder before the first wildcard, and the pattern that paths below it must match."""
    pieces = path.split("/")
    first = next((index for index, piece in enumerate(pieces) if re.search(r"[*?\[]", piece)), None)
    if first is None:
        return path, None
    return "/".join(pieces[:first]) or ("/" if path.startswith("/") else "."), _glob_pattern("/".join(pieces[first:]))


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """Returns the expression of a glob: `*` and `?` match within a folder, `**/` any folders, [...] one character."""
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", glob):
        if token.startswith("[") and token.endswith("]"):
            expression += token.replace("\\", r"\\").replace("[!", "[^", 1)
        else:
            expression += wildcards.get(token) or re.escape(token)
    return re.compile(expression)
