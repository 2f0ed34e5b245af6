"""What the tests of tokenizers share: difficult texts, results in a comparable form, vocabulary files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rwkv_batch.errors import RowError
from rwkv_batch.text.tokenizer import Tokenizer

DIFFICULT = [
    "",
    "\0",
    "\ufeffBOM",
    "\ufffd",
    "\U0010ffff",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🏳️‍🌈 flag",
    "漢字かな交じり文、한국어, 中文。",
    "e\u0301 n\u0303 a\u0308\u0328 Z̷̢a̴l̶g̸o̶",
    "שלום עולם مرحبا بالعالم नमस्ते",
    " " * 1000,
    "\n" * 1000,
    "\n \n\t\t \r\n" * 50,
    "-" * 79,
    "#",
    "def f(x):\n    return x ** 2\n\n\nclass A:\n",
]


def comparable(encoded: list[np.ndarray | RowError]) -> list[list[int] | tuple[str, str]]:
    """Converts results of a tokenizer to values that `==` compares: token ids to lists, errors to (code, message)."""
    return [(one.code, one.message) if isinstance(one, RowError) else one.tolist() for one in encoded]


def each(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | tuple[str, str]]:
    """The result of `encode` for each text, in the form of `comparable`."""
    found: list[list[int] | tuple[str, str]] = []
    for text in texts:
        try:
            found.append(tokenizer.encode(text))
        except RowError as error:
            found.append((error.code, error.message))
    return found


def write(path: Path, *lines: str) -> Path:
    """Write the lines of a vocabulary file."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
