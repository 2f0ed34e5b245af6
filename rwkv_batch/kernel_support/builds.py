"""Files and errors of compiled kernels: atomic writes, and short forms of compilers' messages."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import torch

MAX_CHARACTERS = 300
"""Length of a shortened message, at most."""
_INFORMATIVE = re.compile(r"error\b|\bassert|\bfatal\b|exception", re.IGNORECASE)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that has its name only when it is complete.

    Raises:
        OSError: the folder is missing, full or read-only; no partial file remains.
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
    """Whether an error reports out-of-memory, on the device or the host."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in str(error).lower()


def in_short(message: str) -> str:
    """A compiler's message in one line: its first line, and the first line after it that reports an error.

    Returns:
        At most `MAX_CHARACTERS` characters; "" where the message has none.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = next((line for line in lines[1:] if _INFORMATIVE.search(line)), None)
    text = " ".join(line for line in (lines[0] if lines else "", told) if line)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
