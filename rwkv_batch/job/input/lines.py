"""Lines of a text file, in time and memory that are linear in their length."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ConfigurationError
from .compression import BLOCK_BYTES, open_stream
from .files import InputFile

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_lines(file: InputFile, compression: str | None, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, each with its offset in the file's content, and without byte order mark.

    Args:
        compression: as `compression_of` says.
        offset: of the first line.

    Raises:
        ConfigurationError: the file is UTF-16.
    """
    with open_stream(file, compression, offset) as stream:
        pieces: list[bytes] = []  # of a line that goes over several blocks
        while block := stream.read(BLOCK_BYTES):
            first, *others = block.split(b"\n")
            pieces.append(first)
            for piece in others:
                line = b"".join(pieces)
                if content := _content(file, offset, line):
                    yield offset, content
                offset += len(line) + 1
                pieces = [piece]
        if content := _content(file, offset, b"".join(pieces)):
            yield offset, content


def _content(file: InputFile, offset: int, line: bytes) -> bytes:
    """A line without white space around it, the first one without byte order mark too."""
    if offset == 0 and line.startswith(UTF16_MARKS):
        raise ConfigurationError(
            f"input.path: {file.name}: is text in UTF-16, expected UTF-8; convert it with: iconv -f UTF-16 -t UTF-8"
        )
    return (line.removeprefix(UTF8_MARK) if offset == 0 else line).strip()
