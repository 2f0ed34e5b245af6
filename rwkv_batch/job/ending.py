"""The end of a command's process."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Calls a function, and ends the process with the exit code that it returns.

    The process ends before the interpreter takes itself down. When a command is over, a thread of Arrow may still let
    go of a Python file. If the interpreter is going down at that moment, the thread aborts the process (SIGABRT),
    although all output is written. Functions that were registered with `atexit` while `main` ran are called before.

    Args:
        main: has closed what it has opened when it returns.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # the first one that is registered is called last
    codes.append(main())
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    """Ends the process, unless `main` has raised an exception, whose traceback and exit code are the interpreter's."""
    if not codes:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it cannot be written to, or is closed
            stream.flush()
    os._exit(codes[0])
