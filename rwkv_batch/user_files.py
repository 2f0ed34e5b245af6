"""Files that a user names: only regular ones are read, so that no pipe or device blocks; text is UTF-8."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any


def require_regular(path: str | os.PathLike[str]) -> None:
    """Checks that a path is a regular file.

    Raises:
        OSError: there is no such file, it is a folder, or reading it might never end, as with a pipe or a device.
        ValueError: the path has a NUL character or a lone surrogate.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, expected a regular file", os.fspath(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        OSError, ValueError: as `require_regular`; or the file cannot be read, or is not UTF-8.
    """
    require_regular(path)
    with open(path, encoding="utf-8-sig") as file:
        return file.read()


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        OSError, ValueError: as `read_text`; or the text is not JSON, or nested too deeply.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError where it is not JSON, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def reason_of(error: OSError | ValueError) -> str:
    """The error of a file in words, without the file's name."""
    return getattr(error, "strerror", None) or str(error)
