"""A program for `MessageProcess`: it sends messages back, and ends, or refuses to end, as they say."""

from __future__ import annotations

import os
import sys
from typing import Any

from rwkv_batch.message_process import ParentPipes


def broken(*_: Any) -> None:
    raise ImportError("no module named 'theirs'")


class Unreadable:
    """A message that its receiver cannot read."""

    def __reduce__(self) -> Any:
        return broken, ()


def main(parent: str) -> None:
    pipes = ParentPipes(parent)
    print("a library prints")
    while True:
        message = pipes.receive()
        if isinstance(message, int):
            os._exit(message)
        if message == "unreadable":
            pipes.send(Unreadable())
        elif message == "half":
            os.write(pipes._answers.fileno(), b"\x80\x05\x95")
            os._exit(3)
        else:
            pipes.send(message)
            sys.stdout.flush()
