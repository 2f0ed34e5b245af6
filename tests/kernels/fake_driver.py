"""A driver for Triton that answers for a card that is not there: all of a launch is real but the launch itself.

Triton binds and specializes the arguments, compiles, and compares what the kernel needs with what the card has. The
driver says which card that is, and keeps a record of what would have been launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Compute capability → shared memory that a program can have, in bytes."""
MAX_THREADS = 1024


@dataclass(frozen=True)
class Compilation:
    """The compilation that a launch runs: a kernel, for arguments of certain kinds.

    Args:
        given: its run-time arguments, without those that are None.
        unaligned: pointers that are not known to be at a multiple of 16 bytes.
    """

    kernel: str
    given: frozenset[str]
    unaligned: tuple[str, ...]


class FakeDriver:
    """The driver of a card.

    Attributes:
        compilations: everything that was loaded, in order. Each compilation is loaded once.
        launches: the place in `compilations` of every launch.
    """

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.compilations: list[Compilation] = []
        self.launches: list[int] = []
        self.utils = _Utils(SHARED_BYTES[architecture])

    def install(self) -> None:
        """Triton asks this driver from now on."""
        triton.runtime.driver.set_active(self)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Called when a compilation is loaded; what it returns is called for every launch."""
        place = len(self.compilations)
        self.compilations.append(_describe(source))
        return lambda *args: self.launches.append(place)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """A number for each card: Triton keeps what it has loaded by the number of the device."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


class _Utils:
    def __init__(self, shared_bytes: int) -> None:
        self._shared_bytes = shared_bytes

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, and the most threads of a program."""
        return 1, 1, 0, 0, MAX_THREADS

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared_bytes}


def _describe(source: Any) -> Compilation:
    names = source.fn.arg_names
    types = {name: kind for name, kind in source.signature.items() if kind != "constexpr"}
    aligned = {names[path[0]] for path, attributes in source.attrs.items() if ["tt.divisibility", 16] in attributes}
    unaligned = [name for name, kind in types.items() if kind.startswith("*") and name not in aligned]
    return Compilation(source.fn.__name__, frozenset(types), tuple(unaligned))
