"""A driver for Triton that stands in for a card that this machine lacks. It launches nothing.

Triton binds and specializes the arguments, compiles, and compares the kernel's needs with the card, as before a real
launch. The driver states which card that is, and records the launches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Compute capability → the largest shared memory of a program, in bytes."""
MAX_THREADS = 1024


@dataclass(frozen=True)
class Compilation:
    """A kernel, compiled for arguments of certain kinds.

    Args:
        given: names of the run-time arguments, without those that are None.
        unaligned: pointers that may lie off a multiple of 16 bytes.
    """

    kernel: str
    given: frozenset[str]
    unaligned: tuple[str, ...]


class FakeDriver:
    """The driver of a card that is not there.

    Attributes:
        compilations: all loaded compilations, in order. Each is loaded once.
        launches: index in `compilations` of every launch.
    """

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.compilations: list[Compilation] = []
        self.launches: list[int] = []
        self.utils = _Utils(SHARED_BYTES[architecture])

    def install(self) -> None:
        """Makes this driver Triton's active one."""
        triton.runtime.driver.set_active(self)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Registers a compilation that is loaded; returns the function that is called for every launch."""
        place = len(self.compilations)
        self.compilations.append(_describe(source))
        return lambda *args: self.launches.append(place)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """A number that differs between cards, because Triton keeps loaded kernels by device number."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


class _Utils:
    def __init__(self, shared_bytes: int) -> None:
        self._shared_bytes = shared_bytes

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Returns module, function, registers, spills, and the largest number of threads of a program."""
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
