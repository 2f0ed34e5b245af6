"""Prompts that end the process of their engine. The processes import this module."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence


class EndsWhenRead(list[int]):
    """Ends the process that reads the message with it."""

    def __reduce__(self):
        return os._exit, (7,)


class EndsWhenEncoded(Sequence[int]):
    """Ends the process in which its token ids are asked for, unless that is the one that made it."""

    def __init__(self, maker: int | None = None) -> None:
        self._maker = maker or os.getpid()

    def __reduce__(self):
        return EndsWhenEncoded, (self._maker,)

    def __len__(self) -> int:
        if os.getpid() != self._maker:
            os.kill(os.getpid(), signal.SIGSEGV)
        return 1

    def __getitem__(self, index):
        return [5][index]
