"""Compressed input files: gzip, Zstandard and bzip2, known by their first bytes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .files import InputFile

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
"""First bytes of a compressed file → the name that pyarrow has for its compression."""

BLOCK_BYTES = 1 << 20


def compression_of(file: InputFile) -> str | None:
    """Returns the name of a file's compression, None where it has none."""
    with file.open() as stream:
        head = stream.read(max(map(len, MAGIC)))
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


def open_stream(file: InputFile, compression: str | None, offset: int = 0) -> Any:
    """Opens a file's content for reading from one of its bytes on.

    Args:
        compression: as `compression_of` says.
        offset: in the content. A compressed file is read from its beginning up to there.
    """
    stream = file.open()
    if compression is None:
        stream.seek(offset)
        return stream
    content = pa.CompressedInputStream(stream, compression)
    while offset > 0:
        offset -= len(content.read(min(offset, BLOCK_BYTES)))
    return content


def head_of(file: InputFile, num_bytes: int) -> bytes:
    """Returns the first bytes of a file's content."""
    with open_stream(file, compression_of(file)) as stream:
        return bytes(stream.read(num_bytes))
