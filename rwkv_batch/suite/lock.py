"""The lock of the folder of a suite's results."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigurationError


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """A block in which no other process runs a suite in this folder, which is made where it is missing.

    Raises:
        ConfigurationError: another process does.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"{folder}: another process runs a suite there; end it, or choose another folder with --output"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
