"""The standard streams of a command: one that is closed, or whose reader is gone or disk full, changes no exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NUMBERS = (0, 1, 2)
"""File descriptors of standard input, output and error."""


@contextmanager
def lasting_streams() -> Iterator[None]:
    """A block in which writes to `sys.stdout` and `sys.stderr` never fail: what cannot be written is dropped.

    Descriptors that are closed are opened on the null device. Otherwise the next file that is opened would get such a
    number, and a message would be written into it.
    """
    for number in NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # the lowest number that is free, so it is `number`
    python: Any = sys
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        python.stdout, python.stderr = (_Lasting(stream or nothing) for stream in before)
        try:
            yield
        finally:
            python.stdout, python.stderr = before
            for stream in before:
                _empty(stream)


class _Lasting:
    """A text stream that drops what it cannot write. Characters that its encoding lacks are written as escapes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            with suppress(OSError, ValueError):
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _empty(stream: Any) -> None:
    """Empties the buffer of a stream that cannot be written to. Python gives exit code 120 to a process that ends with
    such a stream."""
    try:
        if stream is not None:
            stream.flush()
    except ValueError:  # it is closed
        pass
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
