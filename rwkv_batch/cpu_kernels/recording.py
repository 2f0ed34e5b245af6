"""Recordings of steps: the calls of native kernels that a step consists of, which one call replays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .arena import Arena
from .call import INT, RecordedCall, kernels, pointers, recorded_calls


class Call(ctypes.Structure):
    """`Call` of csrc/replay.cpp."""

    _fields_ = pointers("kernel", "params")


class Calls(ctypes.Structure):
    """`Calls` of csrc/replay.cpp."""

    _fields_ = (*pointers("calls"), ("count", INT))


class Recording:
    """The calls of a step. They read and write the memory that the step has used.

    Args:
        calls: in their order.
        arena: has the step's own tensors. All others belong to the caller, who keeps them as long as the recording.
    """

    def __init__(self, calls: Sequence[RecordedCall], arena: Arena) -> None:
        self._calls, self._arena = tuple(calls), arena
        self._array = (Call * len(calls))(
            *(Call(ctypes.cast(one.function, ctypes.c_void_p), ctypes.addressof(one.params)) for one in calls)
        )
        self._params = Calls(ctypes.addressof(self._array), len(calls))

    def replay(self) -> None:
        """Makes all calls, with as many threads as torch's operations use in the calling thread.

        Raises:
            IndexError: an index is no row of its table. The calls after it were not made.
        """
        if wrong := kernels().replay(ctypes.byref(self._params)):
            raise IndexError(f"index: got no row of the table at {wrong - 1}")


class Recorded(NamedTuple):
    """What came of recording a step."""

    recording: Recording | None
    obstacle: str
    """Why there is no recording; empty if there is one."""


def record(run: Callable[[], None], arena: Arena) -> Recorded:
    """Runs a step, and records it if it consists of calls of native kernels only.

    The step's own tensors are made in the arena. Of torch's operations a step may have those that only make an empty
    tensor or a view. Any other one cannot be replayed. The step's results are right in any case.

    Args:
        run: runs the step. It keeps none of the tensors that it makes.
    """
    watch = _Watch(arena)
    with recorded_calls() as calls, watch:
        run()
    obstacle = watch.obstacle or ("" if calls else "no native kernel")
    if not arena.is_empty:
        obstacle = obstacle or "a tensor that is kept after the step"
    return Recorded(None if obstacle else Recording(calls, arena), obstacle)


_ALLOCATIONS = (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty)
_OF_NUMBERS = torch.ops.aten.lift_fresh
"""Follows when a tensor is made of Python's numbers or of an array: a view of a tensor that is in no arena."""


class _Watch(TorchDispatchMode):
    """Sees all operations of torch: takes memory from the arena, and finds what cannot be replayed.

    Attributes:
        obstacle: the first operation that cannot be replayed; empty if there is none.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.obstacle = ""
        self._arena = arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch otherwise imports its compiler at the first operation, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            return self._moved(result)
        if not func.is_view or func.overloadpacket is _OF_NUMBERS:
            self.obstacle = self.obstacle or str(func)
        return result

    def _moved(self, made: Tensor) -> Tensor:
        """An empty tensor of the same form in the arena."""
        moved = self._arena.empty(made.shape, made.dtype) if made.is_contiguous() and made.is_cpu else None
        if moved is None:
            self.obstacle = self.obstacle or f"{list(made.shape)} {made.dtype} on {made.device} is not in the arena"
            return made
        return moved
