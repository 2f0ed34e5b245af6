"""Local storage that fails on purpose: at every durable step a process can die, or the disk can."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from rwkv_batch.job.output.storage import Data, LocalStorage

EXIT_CRASHED = 137


class SteppingStorage(LocalStorage):
    """Calls `at_step` before, inside and after everything that changes the disk."""

    def __init__(self, temporary_folder: str, at_step: Callable[[str], None]) -> None:
        super().__init__(temporary_folder)
        self.at_step = at_step

    def make_folder(self, folder: str) -> None:
        if not os.path.isdir(folder):
            self.at_step("before mkdir")
            super().make_folder(folder)
            self.at_step("after mkdir")

    def _write(self, file: BinaryIO, data: Data) -> None:
        self.at_step("created")
        half = memoryview(data)[: len(memoryview(data)) // 2]
        file.write(half)
        file.flush()
        self.at_step("half written")
        file.seek(0)
        super()._write(file, data)
        self.at_step("synced")

    def _rename(self, temporary: str, path: str, exclusive: bool) -> bool:
        is_new = super()._rename(temporary, path, exclusive)
        self.at_step("renamed")
        return is_new

    def _sync_folder(self, folder: str) -> None:
        super()._sync_folder(folder)
        self.at_step("folder synced")

    def remove(self, path: str) -> None:
        self.at_step("before remove")
        super().remove(path)


class Countdown:
    """Acts at the k-th step, once."""

    def __init__(self, k: int, act: Callable[[], None]) -> None:
        self.left = k
        self._act = act

    def __call__(self, _: str) -> None:
        self.left -= 1
        if self.left == 0:
            self._act()


def crash() -> None:
    os._exit(EXIT_CRASHED)


def fail(code: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act
