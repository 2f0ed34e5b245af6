"""What every kind of compiled kernel needs around its compiler: a private folder, whole files, and what errors say.

Nothing here needs triton.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path

import torch

MAX_CHARACTERS = 300
"""Of a message that is cut short."""
_INFORMATIVE = re.compile(r"error\b|\bassert|\bfatal\b|exception", re.IGNORECASE)


def private_folder(name: str) -> Path:
    """The folder of this name among this package's caches; made if need be, for this user alone.

    A folder that is there already may be read-only.

    Raises:
        OSError, RuntimeError: there is no home, the folder cannot be made, or others may write to it and this cannot be
            changed.
    """
    path = Path.home() / ".cache" / "rwkv_batch" / name
    path.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode != 0o700:
        try:
            path.chmod(0o700)
        except OSError:
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete.

    Raises:
        OSError: the folder is missing, full or read-only; nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """The error says that memory is used up, of the device or of the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower()


def in_short(message: str) -> str:
    """A compiler's message, which may have pages, as one line: its first, and the first after it that tells an error.

    Returns:
        At most `MAX_CHARACTERS` characters; "" where the message has none.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = next((line for line in lines[1:] if _INFORMATIVE.search(line)), None)
    text = " ".join(line for line in (lines[0] if lines else "", told) if line)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
