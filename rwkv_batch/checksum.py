"""Checksums of files."""

from __future__ import annotations

import hashlib
from typing import Any

_BLOCK_BYTES = 4 << 20


def sha256_of(*files: Any) -> str:
    """Returns the SHA-256, in hexadecimal, of open binary files one after the other, each from its position on."""
    digest = hashlib.sha256()
    for file in files:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
