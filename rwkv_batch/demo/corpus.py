"""The demo model's corpus: the source of Python's standard library as byte tokens, split by file into two sets.

A token id is a byte's value + 1 (1 to 256). Id 0 is the end of a text and divides documents.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

VOCAB_SIZE = 257
END_OF_TEXT = 0

# Tests repeat themselves, and encodings and pydoc_data are tables and prose. None of them is typical library code.
_EXCLUDED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")
_HELD_OUT_ONE_IN = 20


class Document(NamedTuple):
    """A source file: its path below the standard library's folder, with forward slashes, and its text."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """True for a file left out of training. It depends on the path only, so that the split is always the same."""
        return int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big") % _HELD_OUT_ONE_IN == 0


def stdlib_documents() -> list[Document]:
    """Read every UTF-8 `*.py` file of the running interpreter's standard library, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if _EXCLUDED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith(_EXCLUDED_PREFIXES):
            continue
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            documents.append(Document(relative.as_posix(), text))
    return documents


def encode(text: str) -> list[int]:
    """Token ids of `text`, without the end-of-text token."""
    return [byte + 1 for byte in text.encode("utf-8")]


def decode(token_ids: list[int]) -> str:
    """Text of token ids: end of text has no bytes, and bytes that are not UTF-8 become U+FFFD."""
    return bytes(token - 1 for token in token_ids if token != END_OF_TEXT).decode("utf-8", errors="replace")
