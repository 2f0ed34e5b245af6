"""What every kind of compiled kernel needs around its compiler: a private folder, whole files, and a message cut short.

Nothing here needs triton.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

MAX_CHARACTERS = 300
"""Of a message that is cut short."""
_INFORMATIVE = re.compile(r"error\b|\bassert|\bfatal\b|exception", re.IGNORECASE)


def private_folder(name: str) -> Path:
    """The folder of this name among this package's caches; made if need be, for this user alone.

    Raises:
        OSError, RuntimeError: there is no home, or it cannot be written to.
    """
    path = Path.home() / ".cache" / "rwkv_batch" / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
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


def in_short(message: str) -> str:
    """A compiler's message, which may have pages, as one line: its first, and the first after it that tells an error.

    Returns:
        At most `MAX_CHARACTERS` characters; "" where the message has none.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = next((line for line in lines[1:] if _INFORMATIVE.search(line)), None)
    text = " ".join(line for line in (lines[0] if lines else "", told) if line)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
