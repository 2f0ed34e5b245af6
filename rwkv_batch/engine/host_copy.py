"""A device tensor on its way to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Copies a tensor to the host without waiting for it.

    The copy is part of the device's queue: it holds what the tensor holds once all work launched so far is done.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor, on the host; waits for it."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensor
