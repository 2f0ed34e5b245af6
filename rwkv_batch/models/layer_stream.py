"""The streaming of layers: matrices stay in host memory, and two layers at a time have a buffer on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class _Copy(NamedTuple):
    """A matrix in host memory, and the buffer on the device that it is copied to."""

    host: Tensor
    device: Tensor


class LayerStream:
    """The matrices of streamed layers in pinned host memory, and two buffers for them on the device.

    Layers are numbered in the order in which they are added, which is the order in which they run. Layers with even
    numbers share one buffer, and those with odd numbers the other. While a layer runs, the next one is copied to the
    other buffer, on a CUDA stream for copies. That stream first waits until the layer that used the buffer has run.

    Args:
        device: where the layers run. On other devices than CUDA, copies are synchronous.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: list[list[_Copy]] = []
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._layer_in: list[int | None] = [None, None]
        """The layer that each of the two buffers has, or is about to have."""
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        """For each buffer, the end of the last copy to it."""
        self._released: list[torch.cuda.Event | None] = [None, None]
        """For each buffer, the end of the last layer that ran with it."""

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def nbytes(self) -> int:
        """Bytes that are copied in each run of all layers: 0 for at most two layers, which stay in the buffers."""
        return 0 if len(self) <= 2 else sum(copy.host.nbytes for copies in self._copies for copy in copies)

    @property
    def device_bytes(self) -> int:
        """Bytes of the buffers on the device."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def add_layer(self) -> int:
        """Add a layer; returns its number. `keep` then adds matrices to it."""
        self._copies.append([])
        return len(self) - 1

    def keep(self, matrix: Tensor) -> Tensor:
        """Move a matrix of the newest layer, or a stack of matrices, to host memory.

        In host memory each matrix takes `pinned_bytes` of its size.

        Returns:
            The buffer on the device, which has the matrix only while its layer is `running`.
        """
        copies = self._copies[-1]
        key = (len(self) % 2, len(copies), matrix.shape, matrix.dtype)
        buffer = self._buffers.setdefault(key, matrix)
        if self._stream is not None:
            buffer.record_stream(self._stream)
        for part, part_buffer in zip(_matrices(matrix), _matrices(buffer), strict=True):
            host = torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=self._is_cuda).copy_(part)
            copies.append(_Copy(host, part_buffer))
        self._layer_in = [None, None]
        return buffer

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        """Context manager in which layer `number` runs, on the current CUDA stream.

        The layer's matrices are in its buffer; the next layer is being copied.
        """
        self._fetch(number)
        buffer = number % 2
        if self._is_cuda and (copied := self._copied[buffer]) is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        following = (number + 1) % len(self)
        # With an odd number of layers, the first and the last share a buffer: the first must not replace the running
        # last.
        if following % 2 != buffer:
            self._fetch(following)
        yield
        if self._is_cuda:
            self._released[buffer] = torch.cuda.current_stream(self._device).record_event()
        self._fetch(following)

    def _fetch(self, number: int) -> None:
        """Start to copy a layer to its buffer, unless the buffer has it."""
        buffer = number % 2
        if self._layer_in[buffer] == number:
            return
        self._layer_in[buffer] = None
        if self._stream is not None and (released := self._released[buffer]) is not None:
            self._stream.wait_event(released)
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for host, device in self._copies[number]:
                device.copy_(host, non_blocking=True)
        if self._stream is not None:
            self._copied[buffer] = self._stream.record_event()
        self._layer_in[buffer] = number


def _matrices(stack: Tensor) -> tuple[Tensor, ...]:
    """The n matrices of a stack [n, N, K]; a tensor with fewer axes is one matrix."""
    return stack.unbind(0) if stack.dim() > 2 else (stack,)
