"""An arena: memory for the tensors of steps that run one after the other, at the same addresses in each."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64


class Arena:
    """A block of memory. Its tensors lie at the lowest free addresses, and a tensor's memory is free when it is gone.

    A step that makes the same tensors again therefore finds the memory that is still in the processor's caches.

    Args:
        num_bytes: for all tensors that exist at the same time. What is never used takes no memory.
    """

    def __init__(self, num_bytes: int) -> None:
        memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        self._memory = memory[start : start + num_bytes]
        self._taken: list[tuple[int, int]] = []  # first byte, and the byte after the last one; in order

    @property
    def is_empty(self) -> bool:
        """No tensor exists."""
        return not self._taken

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """A contiguous tensor whose numbers are not set; None if there is no room."""
        size = shape.numel() * dtype.itemsize
        start = index = 0
        for begin, end in self._taken:
            if size <= begin - start:
                break
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            index += 1
        if start + size > len(self._memory):
            return None
        part = (start, start + size)
        self._taken.insert(index, part)
        array = self._memory[start : start + size]
        weakref.finalize(array, self._taken.remove, part).atexit = False  # a tensor of the array holds it
        return torch.from_numpy(array).view(dtype).view(shape)
