"""Copies between the host and a device. For a CUDA device they are asynchronous, which needs pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16


class Uploader:
    """Sends arrays from the host to one device, many arrays in one transfer.

    On a CUDA device a transfer is enqueued on the current stream, and the host does not wait for it.

    Attributes:
        num_transfers: number of transfers so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_transfers = 0

    def send(self, *arrays: np.ndarray) -> list[Tensor]:
        """Sends arrays in one transfer, and returns them as tensors. On a CPU a tensor shares its array's memory."""
        self.num_transfers += 1
        if self.device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        starts, end = [], 0
        for array in arrays:
            starts.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        packed = np.empty(end, np.uint8)
        for start, array in zip(starts, arrays, strict=True):
            packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sent = upload(packed, torch.uint8, self.device)
        return [
            sent[start : start + array.nbytes].view(_TORCH_DTYPES[array.dtype.name]).view(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]


_TORCH_DTYPES = {
    "bool": torch.bool,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "float64": torch.float64,
}


def upload(values: Sequence[float] | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Makes a tensor of these values on the device. On a CUDA device the copy is enqueued on the current stream."""
    host = torch.as_tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def pinned_bytes(num_bytes: int, device: torch.device) -> int:
    """Host memory, in bytes, of a buffer for copies from and to `device`.

    For a CUDA device the buffer is pinned, and torch's allocator of pinned memory rounds sizes up to a power of two.
    """
    return 1 << (num_bytes - 1).bit_length() if device.type == "cuda" and num_bytes else num_bytes


class Staging:
    """Two host buffers for transfers to a device, in alternation: one is filled while the other's copy is in flight.

    Args:
        shape, dtype: of each buffer. For a CUDA device the buffers are pinned.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._buffers = [torch.zeros(shape, dtype=dtype, device="cpu", pin_memory=is_cuda) for _ in range(2)]
        self._copied: list[torch.cuda.Event] = []
        if is_cuda:
            self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def take(self) -> Tensor:
        """The buffer that is not in use. `sent` must be called once its copy has been enqueued."""
        self._turn = 1 - self._turn
        if self._copied:
            self._copied[self._turn].synchronize()  # the copy of two turns ago: no wait, unless the host is far ahead
        return self._buffers[self._turn]

    def sent(self) -> None:
        """Notes that the buffer's copy has been enqueued on the current stream."""
        if self._copied:
            self._copied[self._turn].record(torch.cuda.current_stream(self._device))


class HostCopy:
    """Copies a tensor to pinned host memory without waiting.

    The copy is enqueued on the current stream: it reads the tensor after all work that was enqueued before.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Waits for the copy, and returns it."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensor
