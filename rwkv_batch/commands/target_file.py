"""Files that commands write: whole under their name, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ..errors import ConfigurationError


@contextmanager
def target_file(path: str, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A new file to write. It gets its name when the block ends well, and disappears when the block raises.

    Args:
        path: on a local disk.
        overwrite: replace a file that exists.

    Raises:
        ConfigurationError: the path is no place for a new file.
    """
    check_target(path, overwrite=overwrite)
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def check_target(path: str, *, overwrite: bool = False) -> None:
    """Raises ConfigurationError where a path is no place for a new file."""
    if "://" in path:
        raise ConfigurationError(f"got {path!r}, expected a file on a local disk")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ConfigurationError(f"{path}: there is no folder {folder}; make it first")
    if os.path.isdir(path):
        raise ConfigurationError(f"{path} is a folder, expected the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise ConfigurationError(f"{path} exists; choose another name, or replace it with --overwrite")
