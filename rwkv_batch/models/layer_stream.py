"""Layers whose matrices stay in host memory: two of them at a time are on the device, one running, one arriving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class _Copy(NamedTuple):
    host: Tensor
    device: Tensor


class LayerStream:
    """Matrices of streamed layers, in pinned host memory, and the places on the device that they take turns in.

    Layers are numbered in the order in which they are added, which is the order in which they run. Layers with even and
    with odd numbers share a place each. While a layer runs, the next one is copied on a stream of its own, which waits
    until the layer before has left the place.

    Args:
        device: where the layers run. Anywhere but on CUDA, a copy is done when it is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: list[list[_Copy]] = []
        self._places: dict[tuple[object, ...], Tensor] = {}
        self._held: list[int | None] = [None, None]
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        self._arrived: list[torch.cuda.Event | None] = [None, None]
        self._left: list[torch.cuda.Event | None] = [None, None]

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def nbytes(self) -> int:
        """Bytes that are copied when every layer runs once; nothing where all layers have a place of their own."""
        return 0 if len(self) <= 2 else sum(copy.host.nbytes for copies in self._copies for copy in copies)

    @property
    def device_bytes(self) -> int:
        """Bytes of the places on the device."""
        return sum(place.nbytes for place in self._places.values())

    def add_layer(self) -> int:
        """Start the next layer; returns its number."""
        self._copies.append([])
        return len(self) - 1

    def keep(self, matrix: Tensor) -> Tensor:
        """Move a matrix of the newest layer, or a stack of matrices, to host memory.

        Each matrix has a buffer of its own there: `pinned_bytes` of its size.

        Returns:
            its place on the device, which holds it only while `running` says so.
        """
        copies = self._copies[-1]
        key = (len(self) % 2, len(copies), matrix.shape, matrix.dtype)
        place = self._places.setdefault(key, matrix)
        if self._stream is not None:
            place.record_stream(self._stream)
        for part, part_place in zip(_matrices(matrix), _matrices(place), strict=True):
            host = torch.empty(part.shape, dtype=part.dtype, pin_memory=self._is_cuda).copy_(part)
            copies.append(_Copy(host, part_place))
        self._held = [None, None]
        return place

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        """Layer `number` runs inside, on the current stream; its matrices are there, and the next ones on their way."""
        self._fetch(number)
        place = number % 2
        if self._is_cuda and (arrived := self._arrived[place]) is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)
        following = (number + 1) % len(self)
        # The first layer may share its place with the last one, which it must not push out.
        if following % 2 != place:
            self._fetch(following)
        yield
        if self._is_cuda:
            self._left[place] = torch.cuda.current_stream(self._device).record_event()
        self._fetch(following)

    def _fetch(self, number: int) -> None:
        """Start copying a layer to its place, unless it is there."""
        place = number % 2
        if self._held[place] == number:
            return
        self._held[place] = None
        if self._stream is not None and (left := self._left[place]) is not None:
            self._stream.wait_event(left)
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for host, device in self._copies[number]:
                device.copy_(host, non_blocking=True)
        if self._stream is not None:
            self._arrived[place] = self._stream.record_event()
        self._held[place] = number


def _matrices(stack: Tensor) -> tuple[Tensor, ...]:
    """The matrices of a stack [n, N, K]; a tensor of fewer axes is one."""
    return stack.unbind(0) if stack.dim() > 2 else (stack,)
