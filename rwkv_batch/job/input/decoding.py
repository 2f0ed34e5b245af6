"""Files that pyarrow decodes: damaged data is told from a disk that fails, and found before it is used."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from .unify import text_as_bytes

DECODING_ERRORS = (OSError, pa.ArrowException, ValueError)
"""What damaged or encrypted data raises. A disk or a network that fails raises OSError too."""


def check_layout(array: pa.Array) -> None:
    """Raises pa.ArrowInvalid where lengths or offsets point outside of the data. Text that is not UTF-8 is accepted."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        _bytes(array).validate(full=True)


def _bytes(array: pa.Array) -> pa.Array:
    """Returns the same memory with bytes in place of text."""
    if pt.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, _bytes(array.dictionary), safe=False)
    return array.view(text_as_bytes(array.type))


class WatchedFile:
    """A file for pyarrow that keeps the error of a failed read, to tell a disk that fails from damaged data."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except Exception as error:  # of any file system
            self.error = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        """The stream is closed by who opened it."""
